resource "aws_security_group" "node" {
  name_prefix = "${var.name}-node-"
  description = "Machines of ${var.name}"
  vpc_id      = var.network.vpc_id
  tags        = merge(local.tags, { Name = "${var.name}-node" })

  lifecycle {
    create_before_destroy = true
  }
}

# EFA needs every protocol from and to the group itself; Ray and NCCL choose ports freely.
resource "aws_vpc_security_group_ingress_rule" "nodes" {
  security_group_id            = aws_security_group.node.id
  description                  = "Ray, NCCL and EFA between the machines"
  referenced_security_group_id = aws_security_group.node.id
  ip_protocol                  = "-1"
}

resource "aws_vpc_security_group_egress_rule" "nodes" {
  security_group_id            = aws_security_group.node.id
  description                  = "Ray, NCCL and EFA between the machines"
  referenced_security_group_id = aws_security_group.node.id
  ip_protocol                  = "-1"
}

resource "aws_vpc_security_group_ingress_rule" "load_balancer" {
  count = var.ingress == null ? 0 : 1

  security_group_id            = aws_security_group.node.id
  description                  = "Requests from the load balancer"
  referenced_security_group_id = var.ingress.security_group_id
  ip_protocol                  = "tcp"
  from_port                    = 8000
  to_port                      = 8000
}

resource "aws_vpc_security_group_egress_rule" "https" {
  security_group_id = aws_security_group.node.id
  description       = "AWS services, package indexes, model hubs"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

resource "aws_vpc_security_group_egress_rule" "redis" {
  count = local.has_redis ? 1 : 0

  security_group_id            = aws_security_group.node.id
  description                  = "Ray's state in Redis"
  referenced_security_group_id = aws_security_group.gcs[0].id
  ip_protocol                  = "tcp"
  from_port                    = 6379
  to_port                      = 6379
}
