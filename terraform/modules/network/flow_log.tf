# Refused connections only: what passes between ranks would be terabytes.
resource "aws_flow_log" "refused" {
  count = var.flow_log_retention_days == null ? 0 : 1

  vpc_id          = aws_vpc.this.id
  traffic_type    = "REJECT"
  iam_role_arn    = aws_iam_role.flow_log[0].arn
  log_destination = aws_cloudwatch_log_group.flow[0].arn
  tags            = merge(local.tags, { Name = var.name })
}

resource "aws_cloudwatch_log_group" "flow" {
  #checkov:skip=CKV_AWS_338:how long to keep it is `flow_log_retention_days`
  count = var.flow_log_retention_days == null ? 0 : 1

  name              = "/eagleray/${var.name}/refused-connections"
  retention_in_days = var.flow_log_retention_days
  kms_key_id        = var.kms_key_arn
  tags              = local.tags
}

data "aws_iam_policy_document" "flow_log_assume" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["vpc-flow-logs.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "flow_log" {
  count = var.flow_log_retention_days == null ? 0 : 1

  statement {
    sid       = "WriteOneLogGroup"
    actions   = ["logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams"]
    resources = ["${aws_cloudwatch_log_group.flow[0].arn}:*"]
  }
}

resource "aws_iam_role" "flow_log" {
  count = var.flow_log_retention_days == null ? 0 : 1

  name_prefix        = "${var.name}-flow-log-"
  assume_role_policy = data.aws_iam_policy_document.flow_log_assume.json
  tags               = local.tags
}

resource "aws_iam_role_policy" "flow_log" {
  count = var.flow_log_retention_days == null ? 0 : 1

  name   = "write"
  role   = aws_iam_role.flow_log[0].id
  policy = data.aws_iam_policy_document.flow_log[0].json
}
