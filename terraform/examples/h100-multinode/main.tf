# One copy of a model that takes two machines of eight H100s: tensor parallel over 16 GPUs, EFA between the machines.

provider "aws" {
  region = var.region
}

locals {
  # serve.yaml lets nobody in until this is replaced by the hash of a key, and names no bucket that exists.
  no_key            = join("", [for i in range(64) : "0"])
  nodes_per_replica = 2

  serve_config = replace(replace(file(coalesce(var.serve_config_file, "${path.module}/serve.yaml")), local.no_key, var.api_key_sha256), "YOUR-WEIGHTS-BUCKET", var.weights_bucket)
}

module "network" {
  source = "../../modules/network"

  name               = var.name
  availability_zones = var.availability_zones
  nat                = "per-zone"
}

module "token" {
  source = "../../modules/token"

  name                 = var.name
  recovery_window_days = var.token_recovery_window_days
}

module "ingress" {
  source = "../../modules/ingress"

  name            = var.name
  vpc_id          = module.network.vpc_id
  vpc_cidr        = module.network.vpc_cidr
  public          = var.public
  subnet_ids      = var.public ? module.network.public_subnet_ids : module.network.private_subnet_ids
  certificate_arn = var.certificate_arn
  allowed_cidrs   = var.allowed_cidrs
}

module "cluster" {
  source = "../../modules/cluster"

  name             = var.name
  network          = { vpc_id = module.network.vpc_id, private_subnets = module.network.private_subnets }
  token_secret_arn = module.token.secret_arn
  ingress          = module.ingress.cluster
  package          = var.package
  serve_config     = local.serve_config
  weights          = { bucket = var.weights_bucket }
  gcs              = var.gcs
  expires_at       = var.expires_at

  head = { instance_type = "m7i.2xlarge", zone = var.zone, ami_id = var.ami_ids.cpu }

  worker_groups = {
    h100 = {
      instance_types    = ["p5.48xlarge"]
      gpus_per_node     = 8
      nodes_per_replica = local.nodes_per_replica
      min_size          = local.nodes_per_replica
      max_size          = local.nodes_per_replica * var.max_replicas
      zone              = var.zone
      efa               = true
      market            = var.capacity_block == null ? "on-demand" : "capacity-block"
      capacity_block    = var.capacity_block
      placement_group   = var.capacity_block == null # a block brings its own
      ami_id            = var.ami_ids.gpu
    }
  }
}

module "observability" {
  source = "../../modules/observability"

  name               = var.name
  head_instance_id   = module.cluster.head_instance_id
  worker_groups      = module.cluster.worker_groups
  load_balancer      = module.ingress.metrics
  alert_emails       = var.alert_emails
  monthly_budget_usd = var.monthly_budget_usd
}
