output "secret_arn" {
  description = "The secret that holds the token."
  value       = aws_secretsmanager_secret.ray.arn

  depends_on = [aws_secretsmanager_secret_version.ray] # a machine that boots finds a token in it
}
