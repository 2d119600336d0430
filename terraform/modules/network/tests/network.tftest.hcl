mock_provider "aws" {
  source = "../cluster/tests/mocks"
}

variables {
  name               = "demo"
  availability_zones = ["us-east-1a", "us-east-1b"]
}

run "machines_are_out_of_reach" {
  command = plan

  assert {
    condition     = alltrue([for subnet in concat(values(aws_subnet.public), values(aws_subnet.private)) : subnet.map_public_ip_on_launch != true])
    error_message = "a subnet gives machines public addresses"
  }

  assert {
    condition     = aws_vpc_security_group_ingress_rule.endpoints.cidr_ipv4 == "10.64.0.0/16"
    error_message = "AWS endpoints are for the VPC"
  }
}

run "weights_do_not_pass_the_nat_gateway" {
  command = plan

  assert {
    condition     = aws_vpc_endpoint.s3.vpc_endpoint_type == "Gateway" && aws_vpc_endpoint.s3.service_name == "com.amazonaws.us-east-1.s3"
    error_message = "S3 has no gateway endpoint"
  }
}

run "one_nat_gateway_serves_all_zones" {
  command = plan

  assert {
    condition     = length(aws_nat_gateway.this) == 1 && length(aws_route.nat) == 2
    error_message = "one gateway, a route to it from each zone"
  }
}

run "each_zone_may_have_its_own" {
  command = plan

  variables {
    nat = "per-zone"
  }

  assert {
    condition     = length(aws_nat_gateway.this) == 2
    error_message = "a gateway for each zone"
  }
}

run "the_internet_may_be_out_of_reach" {
  command = plan

  variables {
    nat = "none"
  }

  assert {
    condition     = length(aws_nat_gateway.this) == 0 && length(aws_route.nat) == 0
    error_message = "there is a way out"
  }
}

run "subnets_do_not_overlap" {
  command = plan

  variables {
    availability_zones = ["a", "b", "c", "d", "e", "f", "g", "h"]
  }

  assert {
    condition     = length(distinct([for subnet in concat(values(aws_subnet.public), values(aws_subnet.private)) : subnet.cidr_block])) == 16
    error_message = "two subnets have one range"
  }
}

run "refusals_can_go_unlogged" {
  command = plan

  variables {
    flow_log_retention_days = null
  }

  assert {
    condition     = length(aws_flow_log.refused) == 0 && length(aws_cloudwatch_log_group.flow) == 0
    error_message = "there is a log"
  }
}

# --- Refused

run "bad_name" {
  command = plan

  variables {
    name = "Demo_1"
  }

  expect_failures = [var.name]
}

run "range_that_is_too_small" {
  command = plan

  variables {
    cidr = "10.0.0.0/24"
  }

  expect_failures = [var.cidr]
}

run "public_range" {
  command = plan

  variables {
    cidr = "52.0.0.0/16"
  }

  expect_failures = [var.cidr]
}

run "one_zone" {
  command = plan

  variables {
    availability_zones = ["us-east-1a"]
  }

  expect_failures = [var.availability_zones]
}

run "the_same_zone_twice" {
  command = plan

  variables {
    availability_zones = ["us-east-1a", "us-east-1a", "us-east-1b"]
  }

  expect_failures = [var.availability_zones]
}

run "unknown_kind_of_nat" {
  command = plan

  variables {
    nat = "instance"
  }

  expect_failures = [var.nat]
}

run "no_way_to_aws_at_all" {
  command = plan

  variables {
    nat                 = "none"
    interface_endpoints = ["ssm"]
  }

  expect_failures = [var.interface_endpoints]
}

run "odd_retention" {
  command = plan

  variables {
    flow_log_retention_days = 31
  }

  expect_failures = [var.flow_log_retention_days]
}
