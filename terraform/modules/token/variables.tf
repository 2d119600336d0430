variable "name" {
  description = "Name of the cluster."
  type        = string
}

variable "rotation" {
  description = "A whole number; raise it to draw a new token. Machines read the token when they start: replace them all at once afterwards."
  type        = number
  default     = 1
}

variable "recovery_window_days" {
  description = "Days in which a deleted secret can be restored, 7 to 30; 0: gone at once."
  type        = number
  default     = 7
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
