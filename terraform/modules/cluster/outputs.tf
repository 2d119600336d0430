output "head_instance_id" {
  description = "Instance id of the head."
  value       = aws_instance.head.id
}

output "head_private_ip" {
  description = "Address of the head; a replacement keeps it."
  value       = local.head_address
}

output "worker_groups" {
  description = "Auto Scaling group of each worker group."
  value       = { for name, group in aws_autoscaling_group.worker : name => group.name }
}

output "weights_bucket" {
  description = "Bucket for model weights."
  value       = local.weights_bucket
}

output "serve_config" {
  description = "Where the head reads what to serve: ssm:/PARAMETER or s3://BUCKET/KEY."
  value       = local.serve_config_address
}

output "node_security_group_id" {
  description = "Security group of every machine."
  value       = aws_security_group.node.id
}

output "interruption_queue_url" {
  description = "Queue of warnings that machines will be taken away."
  value       = aws_sqs_queue.interruptions.url
}

output "log_group" {
  description = "Log group of the machines."
  value       = aws_cloudwatch_log_group.node.name
}

output "user_data" {
  description = "Boot scripts as rendered, `head` and each worker group, for reading and tests. Nothing in them is secret."
  value       = merge({ head = local.head_boot }, local.worker_boots)
}

output "dashboard_tunnel" {
  description = "Command that brings the Ray dashboard to http://localhost:8265 (needs the Session Manager plugin)."
  value       = "aws ssm start-session --region ${data.aws_region.current.id} --target ${aws_instance.head.id} --document-name AWS-StartPortForwardingSession --parameters portNumber=8265,localPortNumber=8265"
}

output "shell" {
  description = "Command that opens a shell on the head."
  value       = "aws ssm start-session --region ${data.aws_region.current.id} --target ${aws_instance.head.id}"
}

output "api_tunnel" {
  description = "Command that brings the API to http://localhost:8000/v1 by way of the head's own HTTP proxy, without a load balancer."
  value       = "aws ssm start-session --region ${data.aws_region.current.id} --target ${aws_instance.head.id} --document-name AWS-StartPortForwardingSession --parameters portNumber=8000,localPortNumber=8000"
}
