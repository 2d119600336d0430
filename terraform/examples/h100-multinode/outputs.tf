output "url" {
  description = "Where clients call; the base URL of the OpenAI API is this and /v1."
  value       = module.ingress.url
}

output "api_tunnel" {
  description = "Command that brings the API to http://localhost:8000/v1, without any load balancer."
  value       = module.cluster.api_tunnel
}

output "dashboard_tunnel" {
  description = "Command that brings the Ray dashboard to http://localhost:8265."
  value       = module.cluster.dashboard_tunnel
}

output "shell" {
  description = "Command that opens a shell on the head."
  value       = module.cluster.shell
}

output "head_private_ip" {
  description = "Address of the head."
  value       = module.cluster.head_private_ip
}

output "worker_groups" {
  description = "Auto Scaling group of each worker group."
  value       = module.cluster.worker_groups
}

output "user_data" {
  description = "Boot scripts as rendered, by `head` and worker group."
  value       = module.cluster.user_data
}
