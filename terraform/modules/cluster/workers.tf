locals {
  launch_hook = "eagleray-joined"
  drain_hook  = "eagleray-drained"

  # A group and its machines name each other, so the name is chosen here and not by AWS.
  group_names = { for name in keys(var.worker_groups) : name => "${var.name}-${name}" }
  group_tags  = { for name in keys(var.worker_groups) : name => merge(local.tags, { Name = local.group_names[name], "eagleray:role" = "worker", "eagleray:group" = name }) }
  group_zones = { for name, g in var.worker_groups : name => g.zone == null ? keys(var.network.private_subnets) : [g.zone] }
}

resource "aws_placement_group" "worker" {
  for_each = { for name, g in var.worker_groups : name => g if g.placement_group }

  name     = local.group_names[each.key]
  strategy = "cluster"
  tags     = local.tags
}

resource "aws_launch_template" "worker" {
  for_each = var.worker_groups

  name_prefix            = "${local.group_names[each.key]}-"
  image_id               = each.value.ami_id != null ? each.value.ami_id : data.aws_ssm_parameter.image[each.value.gpus_per_node > 0 ? "gpu" : "cpu"].insecure_value
  instance_type          = each.value.instance_types[0]
  update_default_version = true
  ebs_optimized          = true
  user_data              = base64gzip(local.worker_boots[each.key])
  tags                   = local.tags

  iam_instance_profile {
    arn = aws_iam_instance_profile.node["worker"].arn
  }

  dynamic "network_interfaces" {
    for_each = local.interfaces[each.key]

    content {
      network_card_index          = network_interfaces.value.card
      device_index                = network_interfaces.value.device
      interface_type              = network_interfaces.value.type
      associate_public_ip_address = length(local.interfaces[each.key]) == 1 ? false : null
      security_groups             = [aws_security_group.node.id]
      delete_on_termination       = true
    }
  }

  dynamic "placement" {
    for_each = each.value.placement_group ? [aws_placement_group.worker[each.key].name] : []

    content {
      group_name = placement.value
    }
  }

  dynamic "instance_market_options" {
    for_each = each.value.capacity_block == null ? [] : [each.value.capacity_block]

    content {
      market_type = "capacity-block"
    }
  }

  dynamic "capacity_reservation_specification" {
    for_each = each.value.capacity_block == null ? [] : [each.value.capacity_block]

    content {
      capacity_reservation_target {
        capacity_reservation_id = capacity_reservation_specification.value.reservation_id
      }
    }
  }

  block_device_mappings {
    device_name = var.images.root_device

    ebs {
      volume_type           = "gp3"
      volume_size           = each.value.root_volume_gb
      throughput            = 500
      iops                  = 6000
      encrypted             = true
      kms_key_id            = var.kms_key_arn
      delete_on_termination = true
    }
  }

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
    instance_metadata_tags      = "enabled"
  }

  monitoring {
    enabled = true
  }

  dynamic "tag_specifications" {
    for_each = toset(["instance", "volume", "network-interface"])

    content {
      resource_type = tag_specifications.value
      tags          = local.group_tags[each.key]
    }
  }
}

resource "aws_autoscaling_group" "worker" {
  for_each = var.worker_groups

  name                = local.group_names[each.key]
  min_size            = each.value.min_size
  max_size            = each.value.max_size
  desired_capacity    = coalesce(each.value.desired_size, each.value.min_size)
  vpc_zone_identifier = [for zone in local.group_zones[each.key] : var.network.private_subnets[zone].id]
  target_group_arns   = var.ingress == null ? [] : [var.ingress.target_group_arn]
  capacity_rebalance  = each.value.market == "spot"

  # Never ELB: a machine without a replica has no HTTP proxy, so a load balancer calls every idle or loading one sick.
  health_check_type         = "EC2"
  health_check_grace_period = 300
  enabled_metrics           = ["GroupDesiredCapacity", "GroupInServiceInstances", "GroupPendingInstances", "GroupTerminatingInstances"]
  default_instance_warmup   = 300
  wait_for_capacity_timeout = "0" # a machine counts once it has joined Ray, which `apply` does not wait for

  # Only the head's loop takes machines away, after draining them. `destroy` must not wait for that.
  protect_from_scale_in = true
  suspended_processes   = ["AZRebalance"]
  force_delete          = true

  dynamic "launch_template" {
    for_each = each.value.market == "spot" ? [] : [aws_launch_template.worker[each.key]]

    content {
      id      = launch_template.value.id
      version = launch_template.value.latest_version
    }
  }

  dynamic "mixed_instances_policy" {
    for_each = each.value.market == "spot" ? [aws_launch_template.worker[each.key]] : []

    content {
      instances_distribution {
        on_demand_base_capacity                  = 0
        on_demand_percentage_above_base_capacity = 0
        spot_allocation_strategy                 = "price-capacity-optimized"
      }

      launch_template {
        launch_template_specification {
          launch_template_id = mixed_instances_policy.value.id
          version            = mixed_instances_policy.value.latest_version
        }

        dynamic "override" {
          for_each = each.value.instance_types

          content {
            instance_type = override.value
          }
        }
      }
    }
  }

  # Hooks of the group itself, because those made after it would miss its first machines.
  initial_lifecycle_hook {
    name                 = local.launch_hook # completed by the machine when Ray knows it
    lifecycle_transition = "autoscaling:EC2_INSTANCE_LAUNCHING"
    heartbeat_timeout    = 1800
    default_result       = "ABANDON"
  }

  initial_lifecycle_hook {
    name                 = local.drain_hook # completed by the head when the machine's streams have ended
    lifecycle_transition = "autoscaling:EC2_INSTANCE_TERMINATING"
    heartbeat_timeout    = 900
    default_result       = "CONTINUE"
  }

  dynamic "tag" {
    for_each = local.group_tags[each.key]

    content {
      key                 = tag.key
      value               = tag.value
      propagate_at_launch = true
    }
  }

  lifecycle {
    ignore_changes = [desired_capacity] # the head's scaling loop owns it
  }

  depends_on = [
    aws_cloudwatch_event_target.interruptions, # no warning is lost
    aws_iam_role_policy.node,
    aws_vpc_security_group_egress_rule.https,
  ]
}

# EC2 ends the machines of a capacity block itself, half an hour before the block ends. From then on the group must not
# ask for new ones.
resource "aws_autoscaling_schedule" "block_ends" {
  for_each = { for name, g in var.worker_groups : name => g.capacity_block if g.capacity_block != null }

  scheduled_action_name  = "capacity-block-ends"
  autoscaling_group_name = aws_autoscaling_group.worker[each.key].name
  start_time             = timeadd(each.value.ends_at, "-40m")
  min_size               = 0
  max_size               = 0
  desired_capacity       = 0
}
