# The smallest cluster that has every part: a head, one CPU worker, a load balancer inside the VPC. No GPU, a tiny model.

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
  interface_endpoints = [] # everything but S3 goes through the NAT gateway, which is cheaper for so little
}

module "token" {
  source = "../../modules/token"

  name                 = var.name
  recovery_window_days = 0
}

module "ingress" {
  source = "../../modules/ingress"

  name             = var.name
  vpc_id           = module.network.vpc_id
  vpc_cidr         = module.network.vpc_cidr
  subnet_ids       = module.network.private_subnet_ids
  longest_answer_s = 600
}

module "cluster" {
  source = "../../modules/cluster"

  name             = var.name
  network          = { vpc_id = module.network.vpc_id, private_subnets = module.network.private_subnets }
  token_secret_arn = module.token.secret_arn
  ingress          = module.ingress.cluster
  package          = var.package
  serve_config     = replace(file("${path.module}/serve.yaml"), local.no_key, var.api_key_sha256)
  weights          = { force_destroy = true }
  expires_at       = var.expires_at

  head = { instance_type = "m7i.large", root_volume_gb = 40 }

  worker_groups = {
    cpu = { instance_types = ["c7i.2xlarge"], min_size = 1, max_size = 2, root_volume_gb = 40 }
  }
}
