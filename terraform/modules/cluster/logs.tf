resource "aws_cloudwatch_log_group" "node" {
  #checkov:skip=CKV_AWS_338:how long to keep it is `log_retention_days`
  name              = "/eagleray/${var.name}/nodes"
  retention_in_days = var.log_retention_days
  kms_key_id        = var.kms_key_arn
  tags              = local.tags
}

# What the CloudWatch agent sends. Prompts and answers are in none of these files.
resource "aws_ssm_parameter" "log_agent" {
  #checkov:skip=CKV2_AWS_34:names of files, nothing secret
  name = "/eagleray/${var.name}/log-agent"
  type = "String"
  tags = local.tags

  value = jsonencode({
    logs = {
      logs_collected = {
        files = {
          collect_list = [for stream, path in {
            boot  = "/var/log/eagleray-boot.log"
            node  = "/var/log/eagleray-node.log"
            ray   = "/tmp/ray/session_latest/logs/*.log"
            serve = "/tmp/ray/session_latest/logs/serve/*.log"
          } : { file_path = path, log_group_name = aws_cloudwatch_log_group.node.name, log_stream_name = "{instance_id}/${stream}", publish_multi_logs = strcontains(path, "*") }]
        }
      }
    }
  })
}
