# One machine with one GPU that is head and worker at once, stopped every evening. It is called through a tunnel.

provider "aws" {
  region = var.region
}

locals {
  # serve.yaml lets nobody in until this is replaced by the hash of a key.
  no_key = join("", [for i in range(64) : "0"])
}

module "network" {
  source = "../../modules/network"

  name                = var.name
  availability_zones  = var.availability_zones
  interface_endpoints = []
}

module "token" {
  source = "../../modules/token"

  name                 = var.name
  recovery_window_days = 0
}

module "cluster" {
  source = "../../modules/cluster"

  name             = var.name
  network          = { vpc_id = module.network.vpc_id, private_subnets = module.network.private_subnets }
  token_secret_arn = module.token.secret_arn
  package          = var.package
  serve_config     = replace(file("${path.module}/serve.yaml"), local.no_key, var.api_key_sha256)
  weights          = { force_destroy = true }
  gcs              = { kind = "memory" } # one machine: its state has nobody to outlive it for

  head = {
    instance_type  = "g6e.xlarge" # one L40S, 48 GB
    gpus           = 1
    zone           = var.zone
    root_volume_gb = 200
    stop_schedule  = var.stop_schedule
  }
}
