mock_provider "aws" {
  source = "../cluster/tests/mocks"
}

variables {
  name       = "demo"
  vpc_id     = "vpc-0123456789abcdef0"
  vpc_cidr   = "10.64.0.0/16"
  subnet_ids = ["subnet-a", "subnet-b"]
}

run "by_default_only_the_vpc_may_call" {
  command = plan

  assert {
    condition     = aws_lb.this.internal && keys(aws_vpc_security_group_ingress_rule.callers) == ["10.64.0.0/16"]
    error_message = "the load balancer can be reached from elsewhere"
  }

  assert {
    condition     = aws_lb_listener.this.port == 80 && aws_lb_listener.this.protocol == "HTTP"
    error_message = "without a certificate it speaks HTTP"
  }
}

run "a_public_one_speaks_tls_only" {
  command = plan

  variables {
    public          = true
    certificate_arn = "arn:aws:acm:us-east-1:123456789012:certificate/x"
    allowed_cidrs   = ["203.0.113.0/24"]
  }

  assert {
    condition     = !aws_lb.this.internal && aws_lb_listener.this.protocol == "HTTPS" && aws_lb_listener.this.port == 443
    error_message = "public and not HTTPS"
  }

  assert {
    condition     = startswith(aws_lb_listener.this.ssl_policy, "ELBSecurityPolicy-TLS13-1-2")
    error_message = "TLS older than 1.2 is let in"
  }

  assert {
    condition     = keys(aws_vpc_security_group_ingress_rule.callers) == ["203.0.113.0/24"]
    error_message = "others than the allowed may call"
  }
}

run "streams_are_not_cut" {
  command = plan

  variables {
    longest_answer_s = 3600
  }

  assert {
    condition     = aws_lb.this.idle_timeout == 3600 && aws_lb_target_group.this.deregistration_delay == "3600"
    error_message = "a stream is cut before its time"
  }

  assert {
    condition     = aws_lb_target_group.this.load_balancing_algorithm_type == "least_outstanding_requests"
    error_message = "requests take from a second to half an hour; turns are no way to share them"
  }
}

run "readiness_is_a_route_of_the_gateway" {
  command = plan

  assert {
    condition     = aws_lb_target_group.this.health_check[0].path == "/readyz"
    error_message = "a proxy without routes says that it is well"
  }

  assert {
    condition     = aws_lb_target_group.this.health_check[0].timeout > 5
    error_message = "/readyz waits up to 5 s for its token (probe_timeout_s)"
  }
}

run "everybody_if_it_is_meant" {
  command = plan

  variables {
    public            = true
    certificate_arn   = "arn:aws:acm:us-east-1:123456789012:certificate/x"
    allowed_cidrs     = ["0.0.0.0/0"]
    open_to_everybody = true
  }

  assert {
    condition     = keys(aws_vpc_security_group_ingress_rule.callers) == ["0.0.0.0/0"]
    error_message = "it was meant"
  }
}

# --- Refused

run "bad_name" {
  command = plan

  variables {
    name = "a-name-that-is-much-too-long"
  }

  expect_failures = [var.name]
}

run "one_subnet" {
  command = plan

  variables {
    subnet_ids = ["subnet-a"]
  }

  expect_failures = [var.subnet_ids]
}

run "public_without_certificate" {
  command = plan

  variables {
    public        = true
    allowed_cidrs = ["203.0.113.0/24"]
  }

  expect_failures = [var.public]
}

run "public_without_callers" {
  command = plan

  variables {
    public          = true
    certificate_arn = "arn:aws:acm:us-east-1:123456789012:certificate/x"
  }

  expect_failures = [var.public]
}

run "certificate_by_name" {
  command = plan

  variables {
    certificate_arn = "llm.example.com"
  }

  expect_failures = [var.certificate_arn]
}

run "caller_without_mask" {
  command = plan

  variables {
    allowed_cidrs = ["203.0.113.7"]
  }

  expect_failures = [var.allowed_cidrs]
}

run "everybody_by_accident" {
  command = plan

  variables {
    allowed_cidrs = ["0.0.0.0/0"]
  }

  expect_failures = [var.allowed_cidrs]
}

run "answers_that_take_all_day" {
  command = plan

  variables {
    longest_answer_s = 86400
  }

  expect_failures = [var.longest_answer_s]
}
