# The state of the Ray cluster outlives the head: on a volume of its own, or in Redis.
locals {
  has_volume = var.gcs.kind == "rocksdb"
  has_redis  = var.gcs.kind == "redis"

  gcs_stores = {
    memory  = { kind = "memory" }
    rocksdb = { kind = "rocksdb", volume = one(aws_ebs_volume.gcs[*].id) }
    redis   = { kind = "redis", address = one([for c in aws_memorydb_cluster.gcs : "rediss://${c.cluster_endpoint[0].address}:${c.cluster_endpoint[0].port}"]) }
  }
  gcs_store = local.gcs_stores[var.gcs.kind]
}

resource "aws_ebs_volume" "gcs" {
  count = local.has_volume ? 1 : 0

  availability_zone = local.head_zone
  size              = var.gcs.volume_gb
  type              = "gp3"
  encrypted         = true
  kms_key_id        = var.kms_key_arn
  tags              = merge(local.tags, { Name = "${var.name}-gcs" })
}

resource "aws_volume_attachment" "gcs" {
  count = local.has_volume ? 1 : 0

  volume_id                      = aws_ebs_volume.gcs[0].id
  instance_id                    = aws_instance.head.id
  device_name                    = "/dev/sdf"
  stop_instance_before_detaching = true # never from under a store that writes
}

resource "aws_memorydb_subnet_group" "gcs" {
  count = local.has_redis ? 1 : 0

  name       = "${var.name}-gcs"
  subnet_ids = [for subnet in var.network.private_subnets : subnet.id]
  tags       = local.tags
}

# One shard: the GCS cannot use more. Only the security group of the nodes reaches it, encrypted.
resource "aws_memorydb_cluster" "gcs" {
  count = local.has_redis ? 1 : 0

  name                   = "${var.name}-gcs"
  acl_name               = "open-access"
  node_type              = "db.t4g.small"
  num_shards             = 1
  num_replicas_per_shard = 1
  tls_enabled            = true
  kms_key_arn            = var.kms_key_arn
  subnet_group_name      = aws_memorydb_subnet_group.gcs[0].name
  security_group_ids     = [aws_security_group.gcs[0].id]
  tags                   = local.tags
}

resource "aws_security_group" "gcs" {
  count = local.has_redis ? 1 : 0

  name_prefix = "${var.name}-gcs-"
  description = "Ray's state of ${var.name}"
  vpc_id      = var.network.vpc_id
  tags        = merge(local.tags, { Name = "${var.name}-gcs" })

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_vpc_security_group_ingress_rule" "gcs" {
  count = local.has_redis ? 1 : 0

  security_group_id            = aws_security_group.gcs[0].id
  description                  = "Redis from the head"
  referenced_security_group_id = aws_security_group.node.id
  ip_protocol                  = "tcp"
  from_port                    = 6379
  to_port                      = 6379
}
