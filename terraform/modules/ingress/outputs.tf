output "url" {
  description = "Where clients call: base URL of the OpenAI API is this and /v1. With a certificate, point its name here (dns_name)."
  value       = "${local.has_tls ? "https" : "http"}://${aws_lb.this.dns_name}"
}

output "dns_name" {
  description = "Name that AWS gave the load balancer."
  value       = aws_lb.this.dns_name
}

output "zone_id" {
  description = "Zone of that name, for an alias record in Route 53."
  value       = aws_lb.this.zone_id
}

output "cluster" {
  description = "What the cluster module's `ingress` takes."
  value       = { security_group_id = aws_security_group.this.id, target_group_arn = aws_lb_target_group.this.arn }
}

output "metrics" {
  description = "Dimensions of the load balancer's metrics in CloudWatch, for ../observability."
  value       = { LoadBalancer = aws_lb.this.arn_suffix, TargetGroup = aws_lb_target_group.this.arn_suffix }
}
