variable "name" {
  description = "Name of the cluster, and of the load balancer."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,20}[a-z0-9]$", var.name))
    error_message = "name is 2 to 22 characters of a-z, 0-9 and -, starting with a letter, not ending with -."
  }
}

variable "vpc_id" {
  description = "The VPC."
  type        = string
}

variable "vpc_cidr" {
  description = "Address range of the VPC: where the machines are, and who may call a load balancer that is not public."
  type        = string
}

variable "subnet_ids" {
  description = "Subnets of the load balancer in two zones or more: public ones if it is public, else private ones."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) >= 2
    error_message = "subnet_ids must name two subnets or more, in different zones."
  }
}

variable "public" {
  description = "Whether the load balancer has an address on the internet."
  type        = bool
  default     = false

  validation {
    condition     = !var.public || var.certificate_arn != null
    error_message = "A public load balancer needs certificate_arn: API keys and prompts would cross the internet in the clear."
  }

  validation {
    condition     = !var.public || length(var.allowed_cidrs) > 0
    error_message = "A public load balancer needs allowed_cidrs: who may call it."
  }
}

variable "certificate_arn" {
  description = "ACM certificate of the name that clients use; null: plain HTTP, only inside the VPC."
  type        = string
  default     = null

  validation {
    condition     = var.certificate_arn == null ? true : can(regex("^arn:[a-z-]+:(acm|iam):", var.certificate_arn))
    error_message = "certificate_arn must be the ARN of a certificate in ACM or IAM."
  }
}

variable "allowed_cidrs" {
  description = "Who may connect. Empty: the VPC."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for range in var.allowed_cidrs : can(cidrhost(range, 0))])
    error_message = "allowed_cidrs must be address ranges like 203.0.113.0/24."
  }

  validation {
    condition     = var.open_to_everybody || alltrue([for range in var.allowed_cidrs : try(tonumber(split("/", range)[1]) >= 8, true)])
    error_message = "allowed_cidrs opens the port to everybody (wider than /8). Name your networks, or set open_to_everybody = true; API keys are then all that protects your GPUs."
  }
}

variable "open_to_everybody" {
  description = "Says that a range wider than /8 in allowed_cidrs is meant."
  type        = bool
  default     = false
}

variable "longest_answer_s" {
  description = "How long an answer may take. The load balancer cuts no silent stream before, and gives a machine that leaves so long to finish."
  type        = number
  default     = 1800

  validation {
    condition     = var.longest_answer_s >= 60 && var.longest_answer_s <= 3600
    error_message = "longest_answer_s must be 60 to 3600, which is all that a load balancer can wait for a machine that leaves."
  }
}

variable "access_log_bucket" {
  description = "Existing bucket for the load balancer's access log (callers and paths, no bodies), with the policy that ELB needs; null: none is written."
  type        = string
  default     = null
}

variable "deletion_protection" {
  description = "Whether `destroy` must be refused until this is off again."
  type        = bool
  default     = false
}

variable "tags" {
  description = "Tags on every resource."
  type        = map(string)
  default     = {}
}
