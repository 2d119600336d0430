# Two roles. Both may do what a node does; only the head may scale, and only groups that carry this cluster's tag.
resource "aws_iam_role" "node" {
  for_each = toset(["head", "worker"])

  name_prefix        = "${var.name}-${each.key}-"
  assume_role_policy = data.aws_iam_policy_document.assume.json
  tags               = local.tags
}

resource "aws_iam_instance_profile" "node" {
  for_each = aws_iam_role.node

  name_prefix = "${var.name}-${each.key}-"
  role        = each.value.name
  tags        = local.tags
}

resource "aws_iam_role_policy" "node" {
  for_each = aws_iam_role.node

  name   = "node"
  role   = each.value.id
  policy = data.aws_iam_policy_document.node.json
}

resource "aws_iam_role_policy" "head" {
  name   = "head"
  role   = aws_iam_role.node["head"].id
  policy = data.aws_iam_policy_document.head.json
}

data "aws_iam_policy_document" "assume" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "node" {
  #checkov:skip=CKV_AWS_356:Session Manager's actions know no resource; the lifecycle action is bound by its tag condition
  #checkov:skip=CKV_AWS_111:the same actions, bound in the same way
  statement {
    sid       = "ReadWeightsAndPackage"
    actions   = ["s3:GetObject", "s3:ListBucket"]
    resources = [local.weights_bucket_arn, "${local.weights_bucket_arn}/*"]
  }

  statement {
    sid       = "ReadRayToken"
    actions   = ["secretsmanager:GetSecretValue"]
    resources = [var.token_secret_arn]
  }

  statement {
    sid       = "ReadOwnParameters"
    actions   = ["ssm:GetParameter"]
    resources = ["${local.arn}:ssm:${local.here}:parameter/eagleray/${var.name}/*"]
  }

  statement {
    sid       = "WriteOwnLogs"
    actions   = ["logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"]
    resources = ["${aws_cloudwatch_log_group.node.arn}:*"]
  }

  statement {
    sid       = "FinishOwnLifecycleActions"
    actions   = ["autoscaling:CompleteLifecycleAction", "autoscaling:RecordLifecycleActionHeartbeat"]
    resources = ["${local.arn}:autoscaling:${local.here}:autoScalingGroup:*"]

    condition {
      test     = "StringEquals"
      variable = "aws:ResourceTag/eagleray:cluster"
      values   = [var.name]
    }
  }

  statement {
    sid = "BeReachedBySessionManager"
    actions = [
      "ssm:UpdateInstanceInformation",
      "ssmmessages:CreateControlChannel",
      "ssmmessages:CreateDataChannel",
      "ssmmessages:OpenControlChannel",
      "ssmmessages:OpenDataChannel",
    ]
    resources = ["*"]
  }

  dynamic "statement" {
    for_each = var.kms_key_arn == null ? [] : [var.kms_key_arn]

    content {
      sid       = "Decrypt"
      actions   = ["kms:Decrypt"]
      resources = [statement.value]
    }
  }
}

data "aws_iam_policy_document" "head" {
  #checkov:skip=CKV_AWS_356:the Describe actions know no resource; those that change something are bound by tag conditions
  statement {
    sid       = "ScaleOwnGroups"
    actions   = ["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"]
    resources = ["${local.arn}:autoscaling:${local.here}:autoScalingGroup:*"]

    condition {
      test     = "StringEquals"
      variable = "aws:ResourceTag/eagleray:cluster"
      values   = [var.name]
    }
  }

  statement {
    sid       = "SeeGroups"
    actions   = ["autoscaling:DescribeAutoScalingGroups", "autoscaling:DescribeAutoScalingInstances", "ec2:DescribeInstances"]
    resources = ["*"]
  }

  statement {
    sid       = "ReadInterruptions"
    actions   = ["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility"]
    resources = [aws_sqs_queue.interruptions.arn]
  }
}
