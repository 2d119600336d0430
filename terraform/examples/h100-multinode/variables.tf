variable "name" {
  description = "Name of the cluster."
  type        = string
  default     = "h100"
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
  description = "Zone of the machines: one that has p5.48xlarge, and the capacity block's if there is one."
  type        = string
  default     = "us-east-1a"
}

variable "weights_bucket" {
  description = "Existing bucket in the same region with the weights at llama-3.1-405b-instruct/ (or what your serve.yaml says). Upload them before you pay for GPUs."
  type        = string
}

variable "serve_config_file" {
  description = "The Serve YAML of what is served; null: serve.yaml beside this file."
  type        = string
  default     = null
}

variable "max_replicas" {
  description = "Most copies of the model; each takes two machines."
  type        = number
  default     = 1
}

variable "capacity_block" {
  description = "The capacity block that the machines come from; null: on demand, in a placement group."
  type = object({
    reservation_id = string
    num_nodes      = number
    ends_at        = string
  })
  default = null
}

variable "gcs" {
  description = "Where the state of the Ray cluster is kept (see ../../modules/cluster)."
  type = object({
    kind      = optional(string, "rocksdb")
    volume_gb = optional(number, 10)
  })
  default = {}
}

variable "ami_ids" {
  description = "Images to use instead of the newest. Pin them: the newest changes between two plans, and with it every machine that starts."
  type        = object({ cpu = optional(string), gpu = optional(string) })
  default     = {}
}

variable "public" {
  description = "Whether the API has an address on the internet; needs certificate_arn and allowed_cidrs."
  type        = bool
  default     = false
}

variable "certificate_arn" {
  description = "ACM certificate of the API's name; null: plain HTTP inside the VPC."
  type        = string
  default     = null
}

variable "allowed_cidrs" {
  description = "Who may connect. Empty: the VPC."
  type        = set(string)
  default     = []
}

variable "alert_emails" {
  description = "Who is told of alarms and costs."
  type        = set(string)
}

variable "monthly_budget_usd" {
  description = "What it may cost a month before a warning comes. Two p5.48xlarge on demand are tens of thousands."
  type        = number
}

variable "expires_at" {
  description = "When the machines are taken away if you forget to (2026-12-01T18:00:00Z); null: never."
  type        = string
  default     = null
}

variable "token_recovery_window_days" {
  description = "Days in which the deleted token can be restored; 0: gone at once."
  type        = number
  default     = 7
}
