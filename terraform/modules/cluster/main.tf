data "aws_region" "current" {}
data "aws_partition" "current" {}
data "aws_caller_identity" "current" {}

locals {
  tags    = merge(var.tags, { "eagleray:cluster" = var.name }) # the policies in iam.tf are conditions on this tag
  arn     = "arn:${data.aws_partition.current.partition}"
  account = data.aws_caller_identity.current.account_id
  here    = "${data.aws_region.current.id}:${local.account}"
}
