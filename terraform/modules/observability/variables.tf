variable "name" {
  description = "Name of the cluster."
  type        = string
}

variable "head_instance_id" {
  description = "The head (output of ../cluster)."
  type        = string
}

variable "worker_groups" {
  description = "Auto Scaling group of each worker group (output of ../cluster)."
  type        = map(string)
}

variable "load_balancer" {
  description = "Dimensions of the load balancer's metrics (output `metrics` of ../ingress); null: there is none."
  type        = object({ LoadBalancer = string, TargetGroup = string })
  default     = null
}

variable "alert_emails" {
  description = "Addresses that alarms and budget warnings are mailed to. Each must confirm once."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for address in var.alert_emails : can(regex("^[^@\\s]+@[^@\\s]+$", address))])
    error_message = "alert_emails must be mail addresses."
  }
}

variable "monthly_budget_usd" {
  description = "What the cluster may cost a month: a warning at 80 % forecast and at 100 % spent. It stops nothing. Costs are found by the tag eagleray:cluster, which must be activated once as a cost allocation tag. null: none."
  type        = number
  default     = null

  validation {
    condition     = var.monthly_budget_usd == null ? true : var.monthly_budget_usd > 0
    error_message = "monthly_budget_usd must be more than 0, or null."
  }

  validation {
    condition     = var.monthly_budget_usd == null || length(var.alert_emails) > 0
    error_message = "monthly_budget_usd without alert_emails would warn nobody."
  }
}

variable "kms_key_arn" {
  description = "KMS key that encrypts alerts; null: they are not encrypted at rest, because the service's own key does not let CloudWatch and Budgets write. They hold names of alarms and amounts."
  type        = string
  default     = null
}

variable "tags" {
  description = "Tags on every resource."
  type        = map(string)
  default     = {}
}
