data "aws_region" "current" {}
data "aws_partition" "current" {}
data "aws_caller_identity" "current" {}

locals {
  tags   = merge(var.tags, { "eagleray:cluster" = var.name })
  region = data.aws_region.current.id
  ec2    = "arn:${data.aws_partition.current.partition}:automate:${local.region}:ec2"
}

# --- Who is told

resource "aws_sns_topic" "alerts" {
  name              = "${var.name}-alerts"
  kms_master_key_id = var.kms_key_arn
  tags              = local.tags
}

resource "aws_sns_topic_policy" "alerts" {
  arn    = aws_sns_topic.alerts.arn
  policy = data.aws_iam_policy_document.alerts.json
}

data "aws_iam_policy_document" "alerts" {
  statement {
    sid       = "AlarmsAndBudgets"
    actions   = ["sns:Publish"]
    resources = [aws_sns_topic.alerts.arn]

    principals {
      type        = "Service"
      identifiers = ["cloudwatch.amazonaws.com", "budgets.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [data.aws_caller_identity.current.account_id]
    }
  }
}

resource "aws_sns_topic_subscription" "email" {
  for_each = var.alert_emails

  topic_arn = aws_sns_topic.alerts.arn
  protocol  = "email"
  endpoint  = each.key
}

# --- The head: EC2 moves it to sound hardware, or reboots it; address, id and volumes stay

resource "aws_cloudwatch_metric_alarm" "head" {
  for_each = {
    hardware = { metric = "StatusCheckFailed_System", action = "recover", minutes = 2 }
    system   = { metric = "StatusCheckFailed_Instance", action = "reboot", minutes = 5 }
  }

  alarm_name          = "${var.name}-head-${each.key}"
  alarm_description   = "The head of ${var.name} fails its ${each.key} check; EC2 was asked to ${each.value.action} it. Requests go on; see the runbook in terraform/README.md if it stays."
  namespace           = "AWS/EC2"
  metric_name         = each.value.metric
  dimensions          = { InstanceId = var.head_instance_id }
  statistic           = "Maximum"
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  period              = 60
  evaluation_periods  = each.value.minutes
  treat_missing_data  = "notBreaching" # a head that was stopped on purpose
  alarm_actions       = ["${local.ec2}:${each.value.action}", aws_sns_topic.alerts.arn]
  ok_actions          = [aws_sns_topic.alerts.arn]
  tags                = local.tags
}

# --- Workers: machines that were asked for and are not there

resource "aws_cloudwatch_metric_alarm" "missing_machines" {
  for_each = var.worker_groups

  alarm_name          = "${var.name}-${each.key}-missing"
  alarm_description   = "For half an hour ${each.value} has had fewer machines in service than it wants: no capacity, or they do not join (log group /eagleray/${var.name}/nodes)."
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  evaluation_periods  = 6
  treat_missing_data  = "notBreaching"
  alarm_actions       = [aws_sns_topic.alerts.arn]
  ok_actions          = [aws_sns_topic.alerts.arn]
  tags                = local.tags

  metric_query {
    id          = "missing"
    label       = "Machines missing"
    expression  = "wanted - serving"
    return_data = true
  }

  dynamic "metric_query" {
    for_each = { wanted = "GroupDesiredCapacity", serving = "GroupInServiceInstances" }

    content {
      id = metric_query.key

      metric {
        namespace   = "AWS/AutoScaling"
        metric_name = metric_query.value
        dimensions  = { AutoScalingGroupName = each.value }
        period      = 300
        stat        = "Maximum"
      }
    }
  }
}

# --- Callers: nobody answers them

locals {
  load_balancer_alarms = {
    nobody-ready = {
      metric = "HealthyHostCount", statistic = "Maximum", operator = "LessThanThreshold", threshold = 1, missing = "breaching",
      text   = "No machine can generate a token."
    }
    errors = {
      metric = "HTTPCode_Target_5XX_Count", statistic = "Sum", operator = "GreaterThanThreshold", threshold = 50, missing = "notBreaching",
      text   = "More than 50 errors a minute."
    }
    broken-connections = {
      metric = "TargetConnectionErrorCount", statistic = "Sum", operator = "GreaterThanThreshold", threshold = 20, missing = "notBreaching",
      text   = "The load balancer cannot connect to machines that it holds for sound."
    }
  }
}

resource "aws_cloudwatch_metric_alarm" "load_balancer" {
  for_each = var.load_balancer == null ? {} : local.load_balancer_alarms

  alarm_name          = "${var.name}-${each.key}"
  alarm_description   = "${each.value.text} Runbook: terraform/README.md."
  namespace           = "AWS/ApplicationELB"
  metric_name         = each.value.metric
  dimensions          = var.load_balancer
  statistic           = each.value.statistic
  comparison_operator = each.value.operator
  threshold           = each.value.threshold
  period              = 60
  evaluation_periods  = 5
  treat_missing_data  = each.value.missing
  alarm_actions       = [aws_sns_topic.alerts.arn]
  ok_actions          = [aws_sns_topic.alerts.arn]
  tags                = local.tags
}
