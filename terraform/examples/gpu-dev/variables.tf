variable "name" {
  description = "Name of the cluster."
  type        = string
  default     = "dev"
}

variable "region" {
  description = "AWS region."
  type        = string
  default     = "us-east-1"
}

variable "availability_zones" {
  description = "Two zones or more of the region."
  type        = list(string)
  default     = ["us-east-1a", "us-east-1b"]
}

variable "package" {
  description = "Where eagleray comes from: { wheel = \"dist/eagleray-....whl\" }, or { python = \"/opt/...\" } of your image (see ../../modules/cluster)."
  type = object({
    python   = optional(string)
    wheel    = optional(string)
    pip_args = optional(list(string), [])
    models   = optional(list(string), [])
  })
}

variable "api_key_sha256" {
  description = "SHA-256 of the API key that may call, from `python -m deployments.keys new --name NAME`."
  type        = string

  validation {
    condition     = can(regex("^[0-9a-f]{64}$", var.api_key_sha256)) && var.api_key_sha256 != local.no_key
    error_message = "api_key_sha256 must be the 64 hex digits that `python -m deployments.keys new --name NAME` prints as sha256."
  }
}

variable "zone" {
  description = "Zone of the machine: one that has the instance type. null: the first."
  type        = string
  default     = null
}

variable "stop_schedule" {
  description = "When the machine is stopped, UTC. `aws ec2 start-instances` starts it again. null: never."
  type        = string
  default     = "cron(0 19 * * ? *)"
}
