# Every mistake that is refused before anything is paid for, one run each.
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
}

run "bad_name" {
  command = plan

  variables {
    name = "-demo"
  }

  expect_failures = [var.name]
}

run "no_subnets" {
  command = plan

  variables {
    network = { vpc_id = "vpc-0123456789abcdef0", private_subnets = {} }
  }

  expect_failures = [var.network]
}

run "path_instead_of_text" {
  command = plan

  variables {
    serve_config = "serve.yaml"
  }

  expect_failures = [var.serve_config]
}

run "serve_config_that_only_the_machine_itself_can_reach" {
  command = plan

  variables {
    serve_config = <<-YAML
      http_options:
        host: 127.0.0.1
      applications: []
    YAML
  }

  expect_failures = [var.serve_config]
}

run "port_that_the_load_balancer_does_not_reach" {
  command = plan

  variables {
    serve_config = <<-YAML
      http_options:
        port: 8080
      applications: []
    YAML
  }

  expect_failures = [var.serve_config]
}

run "no_package" {
  command = plan

  variables {
    package = {}
  }

  expect_failures = [var.package]
}

run "package_that_is_no_wheel" {
  command = plan

  variables {
    package = { wheel = "dist/eagleray.tar.gz" }
  }

  expect_failures = [var.package]
}

run "argument_that_the_shell_would_split" {
  command = plan

  variables {
    package = { python = "/opt/python", models = ["a; reboot"] }
  }

  expect_failures = [var.package]
}

run "head_in_an_unknown_zone" {
  command = plan

  variables {
    head = { zone = "eu-west-1a" }
  }

  expect_failures = [var.head]
}

run "half_a_gpu" {
  command = plan

  variables {
    head = { instance_type = "g6e.xlarge", gpus = 0.5 }
  }

  expect_failures = [var.head]
}

run "head_with_gpus_that_nobody_uses" {
  command = plan

  variables {
    head = { instance_type = "p5.48xlarge" }
  }

  expect_failures = [var.head]
}

run "head_without_disk" {
  command = plan

  variables {
    head = { root_volume_gb = 8 }
  }

  expect_failures = [var.head]
}

run "stop_at_a_time_of_day" {
  command = plan

  variables {
    head = { stop_schedule = "20:00" }
  }

  expect_failures = [var.head]
}

run "unknown_store" {
  command = plan

  variables {
    gcs = { kind = "etcd" }
  }

  expect_failures = [var.gcs]
}

run "store_of_no_size" {
  command = plan

  variables {
    gcs = { volume_gb = 1 }
  }

  expect_failures = [var.gcs]
}

run "schedule_with_an_offset" {
  command = plan

  variables {
    expires_at = "2030-12-01T18:00:00+01:00"
  }

  expect_failures = [var.expires_at]
}

run "force_destroy_of_an_existing_bucket" {
  command = plan

  variables {
    weights = { bucket = "my-weights", force_destroy = true }
  }

  expect_failures = [var.weights]
}

run "odd_retention" {
  command = plan

  variables {
    log_retention_days = 31
  }

  expect_failures = [var.log_retention_days]
}

run "bad_group_name" {
  command = plan

  variables {
    worker_groups = {
      head = { instance_types = ["c7i.2xlarge"] }
    }
  }

  expect_failures = [var.worker_groups]
}

run "unknown_market" {
  command = plan

  variables {
    worker_groups = {
      a = { instance_types = ["c7i.2xlarge"], market = "reserved" }
    }
  }

  expect_failures = [var.worker_groups]
}

run "several_types_on_demand" {
  command = plan

  variables {
    worker_groups = {
      a = { instance_types = ["c7i.2xlarge", "c6i.2xlarge"] }
    }
  }

  expect_failures = [var.worker_groups]
}

run "replica_of_no_machines" {
  command = plan

  variables {
    worker_groups = {
      a = { instance_types = ["c7i.2xlarge"], nodes_per_replica = 0 }
    }
  }

  expect_failures = [var.worker_groups]
}

run "disk_smaller_than_its_image" {
  command = plan

  variables {
    worker_groups = {
      a = { instance_types = ["p5.48xlarge"], gpus_per_node = 8, root_volume_gb = 40 }
    }
  }

  expect_failures = [var.worker_groups]
}

run "gpus_that_would_be_paid_for_and_not_used" {
  command = plan

  variables {
    worker_groups = {
      a = { instance_types = ["p5.48xlarge"], gpus_per_node = 4 }
    }
  }

  expect_failures = [var.worker_groups]
}

run "more_machines_at_least_than_at_most" {
  command = plan

  variables {
    worker_groups = {
      a = { instance_types = ["c7i.2xlarge"], min_size = 3, max_size = 2 }
    }
  }

  expect_failures = [var.worker_groups]
}

run "replica_larger_than_its_group" {
  command = plan

  variables {
    worker_groups = {
      a = { instance_types = ["p5.48xlarge"], gpus_per_node = 8, nodes_per_replica = 2, max_size = 1, zone = "us-east-1a" }
    }
  }

  expect_failures = [var.worker_groups]
}

run "half_a_replica" {
  command = plan

  variables {
    worker_groups = {
      a = { instance_types = ["p5.48xlarge"], gpus_per_node = 8, nodes_per_replica = 2, max_size = 3, zone = "us-east-1a" }
    }
  }

  expect_failures = [var.worker_groups]
}

run "spot_with_a_replica_over_two_machines" {
  command = plan

  variables {
    worker_groups = {
      a = { instance_types = ["p5.48xlarge"], gpus_per_node = 8, nodes_per_replica = 2, max_size = 2, market = "spot", zone = "us-east-1a" }
    }
  }

  expect_failures = [var.worker_groups]
}

run "capacity_block_that_is_not_named" {
  command = plan

  variables {
    worker_groups = {
      a = { instance_types = ["p5.48xlarge"], gpus_per_node = 8, market = "capacity-block", zone = "us-east-1a" }
    }
  }

  expect_failures = [var.worker_groups]
}

run "capacity_block_on_demand" {
  command = plan

  variables {
    worker_groups = {
      a = { instance_types = ["p5.48xlarge"], gpus_per_node = 8, zone = "us-east-1a", capacity_block = { reservation_id = "cr-0123456789abcdef0", num_nodes = 2, ends_at = "2030-12-01T11:30:00Z" } }
    }
  }

  expect_failures = [var.worker_groups]
}

run "capacity_block_in_a_placement_group" {
  command = plan

  variables {
    worker_groups = {
      a = { instance_types = ["p5.48xlarge"], gpus_per_node = 8, market = "capacity-block", placement_group = true, zone = "us-east-1a", capacity_block = { reservation_id = "cr-0123456789abcdef0", num_nodes = 2, ends_at = "2030-12-01T11:30:00Z" } }
    }
  }

  expect_failures = [var.worker_groups]
}

run "more_machines_than_the_block_has" {
  command = plan

  variables {
    worker_groups = {
      a = { instance_types = ["p5.48xlarge"], gpus_per_node = 8, market = "capacity-block", max_size = 3, zone = "us-east-1a", capacity_block = { reservation_id = "cr-0123456789abcdef0", num_nodes = 2, ends_at = "2030-12-01T11:30:00Z" } }
    }
  }

  expect_failures = [var.worker_groups]
}

run "capacity_block_without_an_end" {
  command = plan

  variables {
    worker_groups = {
      a = { instance_types = ["p5.48xlarge"], gpus_per_node = 8, market = "capacity-block", zone = "us-east-1a", capacity_block = { reservation_id = "cr-0123456789abcdef0", num_nodes = 2, ends_at = "tomorrow" } }
    }
  }

  expect_failures = [var.worker_groups]
}

run "efa_on_a_machine_that_has_none" {
  command = plan

  variables {
    worker_groups = {
      a = { instance_types = ["g6e.xlarge"], gpus_per_node = 1, efa = true, zone = "us-east-1a" }
    }
  }

  expect_failures = [var.worker_groups]
}

run "efa_on_machines_with_different_cards" {
  command = plan

  variables {
    worker_groups = {
      a = { instance_types = ["g6e.12xlarge", "g6e.24xlarge"], gpus_per_node = 4, efa = true, market = "spot", zone = "us-east-1a" }
    }
  }

  expect_failures = [var.worker_groups]
}

run "efa_across_zones" {
  command = plan

  variables {
    worker_groups = {
      a = { instance_types = ["p5.48xlarge"], gpus_per_node = 8, efa = true }
    }
  }

  expect_failures = [var.worker_groups]
}

run "group_in_an_unknown_zone" {
  command = plan

  variables {
    worker_groups = {
      a = { instance_types = ["c7i.2xlarge"], zone = "eu-west-1a" }
    }
  }

  expect_failures = [var.worker_groups]
}
