variable "name" {
  description = "Name of the cluster."
  type        = string
}

variable "rotation" {
  description = "Raise it to draw a new token. Machines read the token when they start: replace them all at once afterwards."
  type        = number
  default     = 1

  validation {
    condition     = var.rotation >= 1 && floor(var.rotation) == var.rotation
    error_message = "rotation must be a whole number from 1 up."
  }
}

variable "recovery_window_days" {
  description = "Days in which a deleted secret can be restored; 0: gone at once."
  type        = number
  default     = 7

  validation {
    condition     = var.recovery_window_days == 0 || (var.recovery_window_days >= 7 && var.recovery_window_days <= 30)
    error_message = "recovery_window_days must be 0 or 7 to 30."
  }
}

variable "kms_key_arn" {
  description = "KMS key that encrypts the token; null: the service's own key."
  type        = string
  default     = null
}

variable "tags" {
  description = "Tags on every resource."
  type        = map(string)
  default     = {}
}
