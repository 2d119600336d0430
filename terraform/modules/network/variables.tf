variable "name" {
  description = "Name of the cluster; prefix of every resource's name."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,20}[a-z0-9]$", var.name))
    error_message = "name is 2 to 22 characters of a-z, 0-9 and -, starting with a letter, not ending with -."
  }
}

variable "cidr" {
  description = "Address range of the VPC. Each zone gets one sixteenth of it for machines and one sixteenth for the load balancer."
  type        = string
  default     = "10.64.0.0/16"

  validation {
    condition     = can(cidrsubnet(var.cidr, 4, 15)) && try(tonumber(split("/", var.cidr)[1]) <= 20, false)
    error_message = "cidr must be an IPv4 range of /16 to /20, such as 10.64.0.0/16: machines with 32 network cards take 32 addresses each."
  }

  validation {
    condition     = anytrue([for range in ["10.", "172.16.", "172.17.", "172.18.", "172.19.", "172.2", "172.30.", "172.31.", "192.168."] : startswith(var.cidr, range)])
    error_message = "cidr must be private (RFC 1918): 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16."
  }
}

variable "availability_zones" {
  description = "Zones to lay subnets in, for example [\"us-east-1a\", \"us-east-1b\"]. A load balancer needs two; a capacity block must be in one of them."
  type        = list(string)

  validation {
    condition     = length(var.availability_zones) >= 2 && length(var.availability_zones) <= 8
    error_message = "availability_zones must name 2 to 8 zones: a load balancer needs two."
  }

  validation {
    condition     = length(distinct(var.availability_zones)) == length(var.availability_zones)
    error_message = "availability_zones names a zone twice."
  }
}

variable "nat" {
  description = "How private subnets reach the internet: none (only AWS services with an endpoint below), one (one gateway; its zone's loss cuts the others off) or per-zone."
  type        = string
  default     = "one"

  validation {
    condition     = contains(["none", "one", "per-zone"], var.nat)
    error_message = "nat must be none, one or per-zone."
  }
}

variable "interface_endpoints" {
  description = "AWS services reached without the NAT gateway; each costs about 0.01 USD an hour and zone. S3 always has a gateway endpoint, which is free."
  type        = set(string)
  default     = ["autoscaling", "ec2", "ec2messages", "logs", "secretsmanager", "sqs", "ssm", "ssmmessages"]

  validation {
    condition     = var.nat != "none" || length(setsubtract(["autoscaling", "secretsmanager", "sqs", "ssm", "ssmmessages"], var.interface_endpoints)) == 0
    error_message = "With nat = \"none\" interface_endpoints must hold autoscaling, secretsmanager, sqs, ssm and ssmmessages, or no machine can start."
  }
}

variable "flow_log_retention_days" {
  description = "Days to keep the log of refused connections; null: none is written."
  type        = number
  default     = 30

  validation {
    condition     = var.flow_log_retention_days == null ? true : contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731], var.flow_log_retention_days)
    error_message = "flow_log_retention_days must be a period that CloudWatch knows: 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, or null."
  }
}

variable "kms_key_arn" {
  description = "KMS key that encrypts the flow log; null: the service's own key."
  type        = string
  default     = null
}

variable "tags" {
  description = "Tags on every resource."
  type        = map(string)
  default     = {}
}
