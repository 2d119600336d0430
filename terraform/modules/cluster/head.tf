locals {
  head_zone    = coalesce(var.head.zone, keys(var.network.private_subnets)[0])
  head_subnet  = var.network.private_subnets[local.head_zone]
  head_address = cidrhost(local.head_subnet.cidr, 10) # the first four are AWS's own
}

# Workers know the head by its address, so a replacement must have the same one. An instance with a fixed address does;
# EC2 moves it to other hardware when its host fails, keeping id, address and volumes.
resource "aws_instance" "head" {
  ami                         = var.head.ami_id != null ? var.head.ami_id : data.aws_ssm_parameter.image[var.head.gpus > 0 ? "gpu" : "cpu"].insecure_value
  instance_type               = var.head.instance_type
  subnet_id                   = local.head_subnet.id
  private_ip                  = local.head_address
  vpc_security_group_ids      = [aws_security_group.node.id]
  associate_public_ip_address = false
  iam_instance_profile        = aws_iam_instance_profile.node["head"].name
  user_data_base64            = base64gzip(local.head_boot)
  user_data_replace_on_change = true
  ebs_optimized               = true
  monitoring                  = true

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
    instance_metadata_tags      = "enabled"
  }

  root_block_device {
    volume_type = "gp3"
    volume_size = var.head.root_volume_gb
    encrypted   = true
    kms_key_id  = var.kms_key_arn
    tags        = merge(local.tags, { Name = "${var.name}-head" })
  }

  maintenance_options {
    auto_recovery = "default"
  }

  tags = merge(local.tags, { Name = "${var.name}-head", "eagleray:role" = "head" })

  # A newer `latest` image must not replace a head that serves: that is `apply -replace`, at a time of your choosing.
  lifecycle {
    ignore_changes = [ami]
  }

  depends_on = [aws_iam_role_policy.node, aws_iam_role_policy.head, aws_vpc_security_group_egress_rule.https]
}

data "aws_ssm_parameter" "image" {
  for_each = { cpu = var.images.cpu, gpu = var.images.gpu }

  name = each.value
}

resource "aws_lb_target_group_attachment" "head" {
  count = var.ingress != null && var.head.gpus > 0 ? 1 : 0

  target_group_arn = var.ingress.target_group_arn
  target_id        = aws_instance.head.id
}
