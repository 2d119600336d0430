locals {
  has_tls     = var.certificate_arn != null
  port        = local.has_tls ? 443 : 80
  callers     = length(var.allowed_cidrs) > 0 ? var.allowed_cidrs : toset([var.vpc_cidr])
  tags        = merge(var.tags, { "eagleray:cluster" = var.name })
  serve_port  = 8000 # of the proxy that Ray Serve runs on every machine with a replica
  health_path = "/readyz"
}

resource "aws_lb" "this" {
  #checkov:skip=CKV_AWS_150:`deletion_protection` is for those who want it; an example must go with one `destroy`
  #checkov:skip=CKV2_AWS_28:a firewall that reads bodies sees prompts; keys, limits and bounds are the gateway's (docs/security.md)
  name                       = var.name
  internal                   = !var.public
  load_balancer_type         = "application"
  subnets                    = var.subnet_ids
  security_groups            = [aws_security_group.this.id]
  idle_timeout               = var.longest_answer_s # the default of 60 s cuts streams that wait in a queue
  drop_invalid_header_fields = true
  enable_deletion_protection = var.deletion_protection
  tags                       = local.tags

  dynamic "access_logs" {
    for_each = var.access_log_bucket == null ? [] : [var.access_log_bucket]

    content {
      bucket  = access_logs.value
      prefix  = var.name
      enabled = true
    }
  }
}

resource "aws_lb_target_group" "this" {
  name                          = var.name
  vpc_id                        = var.vpc_id
  port                          = local.serve_port
  protocol                      = "HTTP"
  load_balancing_algorithm_type = "least_outstanding_requests" # answers take from a second to half an hour
  deregistration_delay          = var.longest_answer_s
  tags                          = local.tags

  # A route of the gateway, not the proxy's own /-/healthz: a proxy that started while the head was away says that it is
  # well and has no routes. This one has just generated a token. Machines without a replica fail it, and get no requests.
  health_check {
    path                = local.health_path
    matcher             = "200"
    interval            = 15
    timeout             = 10
    healthy_threshold   = 2
    unhealthy_threshold = 2
  }
}

resource "aws_lb_listener" "this" {
  load_balancer_arn = aws_lb.this.arn
  port              = local.port
  protocol          = local.has_tls ? "HTTPS" : "HTTP"
  certificate_arn   = var.certificate_arn
  ssl_policy        = local.has_tls ? "ELBSecurityPolicy-TLS13-1-2-2021-06" : null
  tags              = local.tags

  default_action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.this.arn
  }
}

resource "aws_security_group" "this" {
  name_prefix = "${var.name}-ingress-"
  description = "Load balancer of ${var.name}"
  vpc_id      = var.vpc_id
  tags        = merge(local.tags, { Name = "${var.name}-ingress" })

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_vpc_security_group_ingress_rule" "callers" {
  for_each = local.callers

  security_group_id = aws_security_group.this.id
  description       = "Callers"
  cidr_ipv4         = each.key
  ip_protocol       = "tcp"
  from_port         = local.port
  to_port           = local.port
}

resource "aws_vpc_security_group_egress_rule" "machines" {
  security_group_id = aws_security_group.this.id
  description       = "Machines with an HTTP proxy"
  cidr_ipv4         = var.vpc_cidr
  ip_protocol       = "tcp"
  from_port         = local.serve_port
  to_port           = local.serve_port
}
