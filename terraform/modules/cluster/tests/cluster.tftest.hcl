mock_provider "aws" {
  source = "./tests/mocks"
}

variables {
  name             = "demo"
  token_secret_arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:x"
  serve_config     = "applications: []"
  package          = { python = "/opt/eagleray/bin/python" }
  network = {
    vpc_id = "vpc-0123456789abcdef0"
    private_subnets = {
      us-east-1a = { id = "subnet-a", cidr = "10.64.128.0/20" }
      us-east-1b = { id = "subnet-b", cidr = "10.64.144.0/20" }
    }
  }
  ingress = { security_group_id = "sg-0123456789abcdef0", target_group_arn = "arn:aws:elasticloadbalancing:us-east-1:123456789012:targetgroup/x/1" }
  worker_groups = {
    h100 = { instance_types = ["p5.48xlarge"], gpus_per_node = 8, nodes_per_replica = 2, min_size = 2, max_size = 4, zone = "us-east-1b", efa = true, placement_group = true }
    spot = { instance_types = ["g6e.12xlarge", "g6.12xlarge"], gpus_per_node = 4, max_size = 3, market = "spot", resources = { tier = 2 }, labels = { kind = "cheap" } }
    cpu  = { instance_types = ["c7i.2xlarge"], max_size = 1 }
  }
}

run "no_machine_is_reachable_or_answers_metadata_without_a_session" {
  command = plan

  assert {
    condition     = alltrue([for m in concat([aws_instance.head.metadata_options[0]], [for t in aws_launch_template.worker : t.metadata_options[0]]) : m.http_tokens == "required" && m.http_put_response_hop_limit == 1])
    error_message = "IMDSv1, or IMDS from a container"
  }

  assert {
    condition     = aws_instance.head.associate_public_ip_address == false && alltrue(flatten([for t in aws_launch_template.worker : [for n in t.network_interfaces : n.associate_public_ip_address != "true"]]))
    error_message = "a public address"
  }

  assert {
    condition     = aws_vpc_security_group_ingress_rule.load_balancer[0].referenced_security_group_id == "sg-0123456789abcdef0" && aws_vpc_security_group_ingress_rule.load_balancer[0].to_port == 8000
    error_message = "others than the load balancer reach the proxies"
  }
}

run "disks_and_bucket_are_encrypted_and_closed" {
  command = plan

  assert {
    condition     = aws_instance.head.root_block_device[0].encrypted && aws_ebs_volume.gcs[0].encrypted && alltrue([for t in aws_launch_template.worker : t.block_device_mappings[0].ebs[0].encrypted == "true"])
    error_message = "a disk in the clear"
  }

  assert {
    condition     = aws_s3_bucket_public_access_block.weights[0].restrict_public_buckets && aws_s3_bucket_public_access_block.weights[0].block_public_policy && one(aws_s3_bucket_server_side_encryption_configuration.weights[0].rule).apply_server_side_encryption_by_default[0].sse_algorithm == "aws:kms"
    error_message = "a bucket in the clear, or open"
  }

  assert {
    condition     = aws_s3_bucket.weights[0].force_destroy == false
    error_message = "destroy would take the weights along"
  }
}

run "efa_reaches_every_card_by_the_layout_of_its_machine" {
  command = plan

  variables {
    worker_groups = {
      p5      = { instance_types = ["p5.48xlarge"], gpus_per_node = 8, zone = "us-east-1a", efa = true }
      p5en    = { instance_types = ["p5en.48xlarge"], gpus_per_node = 8, zone = "us-east-1a", efa = true }
      p6-b200 = { instance_types = ["p6-b200.48xlarge"], gpus_per_node = 8, zone = "us-east-1a", efa = true }
      p6-b300 = { instance_types = ["p6-b300.48xlarge"], gpus_per_node = 8, zone = "us-east-1a", efa = true }
      g6e     = { instance_types = ["g6e.12xlarge"], gpus_per_node = 4, zone = "us-east-1a", efa = true }
      plain   = { instance_types = ["p5.48xlarge"], gpus_per_node = 8 }
    }
  }

  assert {
    condition     = { for k, t in aws_launch_template.worker : k => length(t.network_interfaces) } == { p5 = 33, p5en = 17, p6-b200 = 9, p6-b300 = 17, g6e = 1, plain = 1 }
    error_message = "an ordinary interface, and an EFA for each card that can"
  }

  assert {
    condition     = alltrue([for t in aws_launch_template.worker : length(distinct([for n in t.network_interfaces : "${n.network_card_index}/${n.device_index}"])) == length(t.network_interfaces)])
    error_message = "two interfaces in one place"
  }

  assert {
    condition = alltrue([for k, t in aws_launch_template.worker : k == "g6e" || k == "plain" ? true : (
      t.network_interfaces[0].interface_type == "interface" && t.network_interfaces[0].network_card_index == 0 && t.network_interfaces[0].device_index == 0 &&
      alltrue([for n in slice(t.network_interfaces, 1, length(t.network_interfaces)) : n.interface_type == "efa-only" && n.device_index == (n.network_card_index == 0 ? 1 : 0)])
    )])
    error_message = "first card: interface, then efa-only as device 1; other cards: efa-only as device 0"
  }

  assert {
    condition     = aws_launch_template.worker["g6e"].network_interfaces[0].interface_type == "efa" && aws_launch_template.worker["plain"].network_interfaces[0].interface_type != "efa"
    error_message = "a single card does both; without efa it does not"
  }

  assert {
    condition     = !anytrue([for n in aws_launch_template.worker["p6-b300"].network_interfaces : n.network_card_index == 0 && n.interface_type == "efa-only"])
    error_message = "the first card of p6-b300 has no EFA"
  }
}

run "groups_keep_machines_until_the_head_lets_go" {
  command = plan

  assert {
    condition     = alltrue([for g in aws_autoscaling_group.worker : g.health_check_type == "EC2"])
    error_message = "an ELB health check would end every machine without a replica"
  }

  assert {
    condition     = alltrue([for g in aws_autoscaling_group.worker : g.protect_from_scale_in && g.force_delete && contains(g.suspended_processes, "AZRebalance")])
    error_message = "AWS takes machines away, or destroy waits for ever"
  }

  assert {
    condition     = alltrue([for g in aws_autoscaling_group.worker : { for h in g.initial_lifecycle_hook : h.lifecycle_transition => h.default_result } == { "autoscaling:EC2_INSTANCE_LAUNCHING" = "ABANDON", "autoscaling:EC2_INSTANCE_TERMINATING" = "CONTINUE" }])
    error_message = "a machine that never joins must go, one that cannot be drained too"
  }
}

run "what_must_be_close_is_close_and_what_may_be_lost_is_spot" {
  command = plan

  assert {
    condition     = aws_autoscaling_group.worker["h100"].vpc_zone_identifier == toset(["subnet-b"]) && length(aws_autoscaling_group.worker["spot"].vpc_zone_identifier) == 2
    error_message = "a group is in the wrong zones"
  }

  assert {
    condition     = keys(aws_placement_group.worker) == ["h100"] && aws_placement_group.worker["h100"].strategy == "cluster"
    error_message = "only h100 asked for a placement group"
  }

  assert {
    condition     = aws_autoscaling_group.worker["spot"].capacity_rebalance && aws_autoscaling_group.worker["spot"].mixed_instances_policy[0].instances_distribution[0].on_demand_percentage_above_base_capacity == 0
    error_message = "spot is not spot"
  }

  assert {
    condition     = length(aws_autoscaling_group.worker["h100"].mixed_instances_policy) == 0
    error_message = "on demand is not on demand"
  }
}

run "a_capacity_block_is_aimed_at_and_ends_in_time" {
  command = plan

  variables {
    worker_groups = {
      h100 = { instance_types = ["p5.48xlarge"], gpus_per_node = 8, nodes_per_replica = 2, min_size = 2, max_size = 4, zone = "us-east-1b", efa = true, market = "capacity-block",
      capacity_block = { reservation_id = "cr-0123456789abcdef0", num_nodes = 4, ends_at = "2030-12-01T11:30:00Z" } }
    }
  }

  assert {
    condition     = aws_launch_template.worker["h100"].instance_market_options[0].market_type == "capacity-block" && aws_launch_template.worker["h100"].capacity_reservation_specification[0].capacity_reservation_target[0].capacity_reservation_id == "cr-0123456789abcdef0"
    error_message = "machines would not come from the block"
  }

  assert {
    condition     = aws_autoscaling_schedule.block_ends["h100"].start_time == "2030-12-01T10:50:00Z" && aws_autoscaling_schedule.block_ends["h100"].max_size == 0
    error_message = "the group asks for machines when the block is over"
  }
}

run "the_head_keeps_its_address_and_its_store" {
  command = plan

  assert {
    condition     = aws_instance.head.private_ip == "10.64.128.10" && aws_instance.head.subnet_id == "subnet-a" && aws_ebs_volume.gcs[0].availability_zone == "us-east-1a"
    error_message = "a replacement would be elsewhere"
  }

  assert {
    condition     = aws_volume_attachment.gcs[0].stop_instance_before_detaching
    error_message = "the volume is torn from a running head"
  }

  assert {
    condition     = output.head_private_ip == "10.64.128.10"
    error_message = "the output tells another address"
  }
}

run "every_node_json_has_the_keys_that_nodes_read" {
  command = apply # ids are known only then; the provider is mocked

  # tests/terraform loads these through the class itself; here it is the text.
  assert {
    condition = alltrue([for script in values(output.user_data) : toset(keys(jsondecode(regex("(?s)NODE_JSON'\n(.*?)\nNODE_JSON", script)[0]))) == toset([
      "cluster", "region", "role", "head_address", "group", "num_gpus", "resources", "labels", "token_secret_arn", "serve_config", "gcs", "weights_bucket",
    "weights_cache", "efa", "launch_hook", "autoscaling_group", "worker_groups", "interruption_queue_url"])])
    error_message = "cluster/node/config.py refuses unknown keys"
  }

  assert {
    condition     = jsondecode(regex("(?s)NODE_JSON'\n(.*?)\nNODE_JSON", output.user_data["head"])[0]).gcs == { kind = "rocksdb", volume = "vol-0123456789abcdef0" }
    error_message = "the head does not know its volume"
  }

  assert {
    condition = jsondecode(regex("(?s)NODE_JSON'\n(.*?)\nNODE_JSON", output.user_data["spot"])[0]) == {
      cluster          = "demo", region = "us-east-1", role = "worker", head_address = "10.64.128.10", group = "spot", num_gpus = 4, resources = { tier = 2 }, labels = { kind = "cheap" },
      token_secret_arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:x", serve_config = null, gcs = null, weights_bucket = output.weights_bucket,
      weights_cache    = "/var/lib/eagleray/weights", efa = false, launch_hook = "eagleray-joined", autoscaling_group = "demo-spot", worker_groups = [], interruption_queue_url = null
    }
    error_message = "node.json of a worker is another"
  }

  assert {
    condition     = { for g in jsondecode(regex("(?s)NODE_JSON'\n(.*?)\nNODE_JSON", output.user_data["head"])[0]).worker_groups : g.name => [g.autoscaling_group, g.nodes_per_replica, g.gpus_per_node, g.min_size, g.max_size] } == { cpu = ["demo-cpu", 1, 0, 0, 1], h100 = ["demo-h100", 2, 8, 2, 4], spot = ["demo-spot", 1, 4, 0, 3] }
    error_message = "the head scales by other numbers than the groups have"
  }

  assert {
    condition     = !anytrue([for script in values(output.user_data) : strcontains(script, "dnf install -y -q python3.11")])
    error_message = "an interpreter of the image needs no installation"
  }
}

run "a_head_with_gpus_takes_work_and_requests" {
  command = apply

  variables {
    head          = { instance_type = "g6e.xlarge", gpus = 1 }
    gcs           = { kind = "memory" }
    worker_groups = {}
  }

  assert {
    condition     = jsondecode(regex("(?s)NODE_JSON'\n(.*?)\nNODE_JSON", output.user_data["head"])[0]).group == "head" && length(aws_lb_target_group_attachment.head) == 1
    error_message = "the head takes no work"
  }

  assert {
    condition     = length(aws_ebs_volume.gcs) == 0 && jsondecode(regex("(?s)NODE_JSON'\n(.*?)\nNODE_JSON", output.user_data["head"])[0]).gcs == { kind = "memory" }
    error_message = "memory needs no volume"
  }
}

run "redis_is_encrypted_and_for_nodes_only" {
  command = apply

  variables {
    gcs = { kind = "redis" }
  }

  assert {
    condition     = aws_memorydb_cluster.gcs[0].tls_enabled && aws_memorydb_cluster.gcs[0].num_shards == 1 && length(aws_ebs_volume.gcs) == 0
    error_message = "one encrypted shard and no volume"
  }

  assert {
    condition     = aws_vpc_security_group_ingress_rule.gcs[0].referenced_security_group_id == aws_security_group.node.id
    error_message = "others than nodes reach the store"
  }

  assert {
    condition     = startswith(jsondecode(regex("(?s)NODE_JSON'\n(.*?)\nNODE_JSON", output.user_data["head"])[0]).gcs.address, "rediss://")
    error_message = "the head speaks to it in the clear"
  }
}

run "a_long_serve_config_goes_to_the_bucket" {
  command = apply

  variables {
    serve_config = "applications: []\n# ${format("%9000s", "x")}"
  }

  assert {
    condition     = length(aws_ssm_parameter.serve_config) == 0 && startswith(output.serve_config, "s3://")
    error_message = "a parameter holds 8 KiB"
  }
}

run "a_middling_one_to_the_advanced_tier" {
  command = plan

  variables {
    serve_config = "applications: []\n# ${format("%5000s", "x")}"
  }

  assert {
    condition     = aws_ssm_parameter.serve_config[0].tier == "Advanced"
    error_message = "a standard parameter holds 4 KiB"
  }
}

run "everything_that_computes_ends_at_expires_at" {
  command = plan

  variables {
    expires_at = "2030-12-01T18:00:00Z"
    head       = { stop_schedule = "cron(0 19 * * ? *)" }
  }

  assert {
    condition = { for k, s in aws_scheduler_schedule.end : k => s.schedule_expression } == {
      expire-head = "at(2030-12-01T18:00:00)", expire-group-cpu = "at(2030-12-01T18:00:00)", expire-group-h100 = "at(2030-12-01T18:00:00)", expire-group-spot = "at(2030-12-01T18:00:00)", stop-head = "cron(0 19 * * ? *)"
    }
    error_message = "something would run on"
  }
}

run "an_existing_bucket_is_left_alone" {
  command = plan

  variables {
    weights = { bucket = "my-weights" }
  }

  assert {
    condition     = length(aws_s3_bucket.weights) == 0 && length(aws_s3_bucket_policy.weights) == 0 && output.weights_bucket == "my-weights"
    error_message = "an existing bucket is touched"
  }
}
