# Warnings that AWS will take a machine away reach the head through a queue; its loop drains the machine in time. Events
# of EC2 do not tell whose the machine is: the head passes over those of others.
locals {
  interruptions = {
    spot        = { source = "aws.ec2", type = "EC2 Spot Instance Interruption Warning", detail = {} }
    rebalance   = { source = "aws.ec2", type = "EC2 Instance Rebalance Recommendation", detail = {} }
    maintenance = { source = "aws.health", type = "AWS Health Event", detail = { service = ["EC2"], eventTypeCategory = ["scheduledChange"] } }
    terminate   = { source = "aws.autoscaling", type = "EC2 Instance-terminate Lifecycle Action", detail = { AutoScalingGroupName = values(local.group_names) } }
  }
}

resource "aws_sqs_queue" "interruptions" {
  name                      = "${var.name}-interruptions"
  message_retention_seconds = 900 # older warnings are about machines that are gone
  receive_wait_time_seconds = 20
  sqs_managed_sse_enabled   = var.kms_key_arn == null ? true : null
  kms_master_key_id         = var.kms_key_arn
  tags                      = local.tags
}

data "aws_iam_policy_document" "interruptions" {
  statement {
    sid       = "OnlyOwnRules"
    actions   = ["sqs:SendMessage"]
    resources = [aws_sqs_queue.interruptions.arn]

    principals {
      type        = "Service"
      identifiers = ["events.amazonaws.com"]
    }

    condition {
      test     = "ArnEquals"
      variable = "aws:SourceArn"
      values   = [for rule in aws_cloudwatch_event_rule.interruptions : rule.arn]
    }
  }
}

resource "aws_sqs_queue_policy" "interruptions" {
  queue_url = aws_sqs_queue.interruptions.url
  policy    = data.aws_iam_policy_document.interruptions.json
}

resource "aws_cloudwatch_event_rule" "interruptions" {
  for_each = { for name, event in local.interruptions : name => event if name != "terminate" || length(var.worker_groups) > 0 }

  name        = "${var.name}-${each.key}"
  description = "${each.value.type}, to the head of ${var.name}"
  event_pattern = jsonencode(merge(
    { source = [each.value.source], "detail-type" = [each.value.type] },
    { for key, detail in { detail = each.value.detail } : key => detail if length(detail) > 0 },
  ))
  tags = local.tags
}

resource "aws_cloudwatch_event_target" "interruptions" {
  for_each = aws_cloudwatch_event_rule.interruptions

  rule = each.value.name
  arn  = aws_sqs_queue.interruptions.arn

  depends_on = [aws_sqs_queue_policy.interruptions]
}
