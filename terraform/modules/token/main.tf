# AWS draws the token and Terraform hands it on: an ephemeral value and a write-only argument are in no plan and no state.
ephemeral "aws_secretsmanager_random_password" "ray" {
  password_length     = 48
  exclude_punctuation = true
}

resource "aws_secretsmanager_secret" "ray" {
  #checkov:skip=CKV2_AWS_57:a new token needs a restart of the whole cluster, so rotation is an act (`rotation`), not a schedule
  name_prefix             = "eagleray-${var.name}-ray-token-"
  description             = "Who knows this may join, read and command the Ray cluster ${var.name}"
  recovery_window_in_days = var.recovery_window_days
  kms_key_id              = var.kms_key_arn
  tags                    = merge(var.tags, { "eagleray:cluster" = var.name })
}

resource "aws_secretsmanager_secret_version" "ray" {
  secret_id                = aws_secretsmanager_secret.ray.id
  secret_string_wo         = ephemeral.aws_secretsmanager_random_password.ray.random_password
  secret_string_wo_version = var.rotation
}
