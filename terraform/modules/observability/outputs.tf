output "alerts_topic_arn" {
  description = "SNS topic of the alarms; subscribe what pages you."
  value       = aws_sns_topic.alerts.arn
}

output "dashboard" {
  description = "Name of the CloudWatch dashboard. Tokens, queues and caches are in Grafana (docs/metrics.md)."
  value       = aws_cloudwatch_dashboard.this.dashboard_name
}
