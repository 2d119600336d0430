# Ends on a schedule. A scheduled action of an Auto Scaling group would not do: its machines are protected from scale-in,
# and the head would ask for them again. So the groups are deleted with their machines, and the head is stopped.
locals {
  stop_head = { action = "ec2:stopInstances", input = jsonencode({ InstanceIds = [aws_instance.head.id] }) }

  ends = merge(
    { head = local.stop_head },
    { for name, group in local.group_names : "group-${name}" => {
      action = "autoscaling:deleteAutoScalingGroup"
      input  = jsonencode({ AutoScalingGroupName = group, ForceDelete = true })
    } },
  )

  schedules = merge(
    { for name, end in local.ends : "expire-${name}" => merge(end, { when = "at(${trimsuffix(var.expires_at, "Z")})" }) if var.expires_at != null },
    { for name, when in { stop-head = var.head.stop_schedule } : name => merge(local.stop_head, { when = when }) if when != null },
  )
}

resource "aws_scheduler_schedule" "end" {
  #checkov:skip=CKV_AWS_297:a schedule holds names of groups and instances, nothing secret
  for_each = local.schedules

  name                         = "${var.name}-${each.key}"
  schedule_expression          = each.value.when
  schedule_expression_timezone = "UTC"

  flexible_time_window {
    mode = "OFF"
  }

  target {
    arn      = "${local.arn}:scheduler:::aws-sdk:${each.value.action}"
    role_arn = aws_iam_role.scheduler[0].arn
    input    = each.value.input
  }
}

resource "aws_iam_role" "scheduler" {
  count = length(local.schedules) > 0 ? 1 : 0

  name_prefix        = "${var.name}-scheduler-"
  assume_role_policy = data.aws_iam_policy_document.scheduler_assume.json
  tags               = local.tags
}

resource "aws_iam_role_policy" "scheduler" {
  count = length(local.schedules) > 0 ? 1 : 0

  name   = "end"
  role   = aws_iam_role.scheduler[0].id
  policy = data.aws_iam_policy_document.scheduler.json
}

data "aws_iam_policy_document" "scheduler_assume" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["scheduler.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "scheduler" {
  statement {
    sid       = "EndOwnMachines"
    actions   = ["autoscaling:DeleteAutoScalingGroup"]
    resources = ["${local.arn}:autoscaling:${local.here}:autoScalingGroup:*"]

    condition {
      test     = "StringEquals"
      variable = "aws:ResourceTag/eagleray:cluster"
      values   = [var.name]
    }
  }

  statement {
    sid       = "StopOwnHead"
    actions   = ["ec2:StopInstances"]
    resources = ["${local.arn}:ec2:${local.here}:instance/*"]

    condition {
      test     = "StringEquals"
      variable = "aws:ResourceTag/eagleray:cluster"
      values   = [var.name]
    }
  }
}
