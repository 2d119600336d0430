locals {
  makes_bucket       = var.weights.bucket == null
  weights_bucket     = local.makes_bucket ? aws_s3_bucket.weights[0].bucket : var.weights.bucket
  weights_bucket_arn = "${local.arn}:s3:::${local.weights_bucket}"

  # A parameter holds 8 KiB at most.
  fits_parameter       = length(base64encode(var.serve_config)) <= 8192 * 4 / 3 # bytes, not letters
  serve_config_address = local.fits_parameter ? "ssm:${aws_ssm_parameter.serve_config[0].name}" : "s3://${local.weights_bucket}/${aws_s3_object.serve_config[0].key}"
}

resource "aws_ssm_parameter" "serve_config" {
  #checkov:skip=CKV2_AWS_34:a Serve config names models and holds hashes of API keys, nothing secret
  count = local.fits_parameter ? 1 : 0

  name  = "/eagleray/${var.name}/serve-config"
  type  = "String"
  tier  = length(base64encode(var.serve_config)) <= 4096 * 4 / 3 ? "Standard" : "Advanced"
  value = var.serve_config
  tags  = local.tags
}

resource "aws_s3_object" "serve_config" {
  count = local.fits_parameter ? 0 : 1

  bucket  = local.weights_bucket
  key     = "eagleray/${var.name}/serve.yaml"
  content = var.serve_config
  tags    = local.tags

  depends_on = [aws_s3_bucket_server_side_encryption_configuration.weights]
}

resource "aws_s3_object" "wheel" {
  count = var.package.wheel == null ? 0 : 1

  bucket      = local.weights_bucket
  key         = "eagleray/${var.name}/${filemd5(var.package.wheel)}/${basename(var.package.wheel)}"
  source      = var.package.wheel
  source_hash = filemd5(var.package.wheel)
  tags        = local.tags

  depends_on = [aws_s3_bucket_server_side_encryption_configuration.weights]
}

resource "aws_s3_bucket" "weights" {
  #checkov:skip=CKV_AWS_144:weights can be fetched again; a copy in another region costs as much as the first
  #checkov:skip=CKV_AWS_18:who read which weights is in CloudTrail's data events, for those who want it
  #checkov:skip=CKV2_AWS_62:nothing waits for objects to appear
  count = local.makes_bucket ? 1 : 0

  bucket_prefix = "${var.name}-weights-"
  force_destroy = var.weights.force_destroy
  tags          = local.tags
}

resource "aws_s3_bucket_public_access_block" "weights" {
  count = local.makes_bucket ? 1 : 0

  bucket                  = aws_s3_bucket.weights[0].id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_server_side_encryption_configuration" "weights" {
  count = local.makes_bucket ? 1 : 0

  bucket = aws_s3_bucket.weights[0].id

  rule {
    bucket_key_enabled = true

    apply_server_side_encryption_by_default {
      sse_algorithm     = "aws:kms"
      kms_master_key_id = var.kms_key_arn
    }
  }
}

resource "aws_s3_bucket_versioning" "weights" {
  count = local.makes_bucket ? 1 : 0

  bucket = aws_s3_bucket.weights[0].id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "weights" {
  count = local.makes_bucket ? 1 : 0

  bucket = aws_s3_bucket.weights[0].id

  rule {
    id     = "drop-what-was-replaced"
    status = "Enabled"

    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = 3
    }

    noncurrent_version_expiration {
      noncurrent_days = 30
    }
  }

  depends_on = [aws_s3_bucket_versioning.weights]
}

data "aws_iam_policy_document" "tls_only" {
  statement {
    sid       = "TlsOnly"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [local.weights_bucket_arn, "${local.weights_bucket_arn}/*"]

    principals {
      type        = "*"
      identifiers = ["*"]
    }

    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }
}

resource "aws_s3_bucket_policy" "weights" {
  count = local.makes_bucket ? 1 : 0

  bucket = aws_s3_bucket.weights[0].id
  policy = data.aws_iam_policy_document.tls_only.json

  depends_on = [aws_s3_bucket_public_access_block.weights]
}
