output "vpc_id" {
  description = "The VPC."
  value       = aws_vpc.this.id
}

output "vpc_cidr" {
  description = "Address range of the VPC."
  value       = var.cidr
}

output "private_subnets" {
  description = "Where machines live: zone to {id, cidr}."
  value       = { for zone, subnet in aws_subnet.private : zone => { id = subnet.id, cidr = local.private_cidrs[zone] } }

  depends_on = [aws_route.nat, aws_route_table_association.private] # a machine that boots needs its way out
}

output "public_subnet_ids" {
  description = "Where a public load balancer lives, one for each zone."
  value       = [for zone in var.availability_zones : aws_subnet.public[zone].id]
}

output "private_subnet_ids" {
  description = "Where an internal load balancer lives, one for each zone."
  value       = [for zone in var.availability_zones : aws_subnet.private[zone].id]
}
