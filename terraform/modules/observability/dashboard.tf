locals {
  group_plots = [for name, group in var.worker_groups : {
    title   = "Machines of ${name}"
    metrics = [for metric in ["GroupDesiredCapacity", "GroupInServiceInstances", "GroupPendingInstances", "GroupTerminatingInstances"] : ["AWS/AutoScaling", metric, "AutoScalingGroupName", group]]
  }]

  dimensions = var.load_balancer == null ? [] : flatten([for name, value in var.load_balancer : [name, value]])
  load_balancer_plots = var.load_balancer == null ? [] : [for title, metrics in {
    "Requests and errors a minute" = ["RequestCount", "HTTPCode_Target_4XX_Count", "HTTPCode_Target_5XX_Count"]
    "Machines that are ready"      = ["HealthyHostCount", "UnHealthyHostCount"]
    "Time to the first byte, s"    = ["TargetResponseTime"]
  } : { title = title, metrics = [for metric in metrics : concat(["AWS/ApplicationELB", metric], local.dimensions)] }]

  head_plots = [{
    title   = "Head"
    metrics = [for metric in ["CPUUtilization", "StatusCheckFailed"] : ["AWS/EC2", metric, "InstanceId", var.head_instance_id]]
  }]

  plots = concat(local.load_balancer_plots, local.group_plots, local.head_plots)
}

resource "aws_cloudwatch_dashboard" "this" {
  dashboard_name = var.name
  dashboard_body = jsonencode({ widgets = [for i, plot in local.plots : {
    type       = "metric"
    x          = (i % 2) * 12
    y          = floor(i / 2) * 6
    width      = 12
    height     = 6
    properties = { region = local.region, title = plot.title, metrics = plot.metrics, period = 60, stat = startswith(plot.title, "Requests") ? "Sum" : "Average" }
  }] })
}
