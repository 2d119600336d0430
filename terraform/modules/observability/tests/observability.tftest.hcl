mock_provider "aws" {
  source = "../cluster/tests/mocks"
}

variables {
  name             = "demo"
  head_instance_id = "i-0123456789abcdef0"
  worker_groups    = { h100 = "demo-h100" }
  load_balancer    = { LoadBalancer = "app/x/1", TargetGroup = "targetgroup/x/1" }
  alert_emails     = ["ops@example.com"]
}

run "a_head_that_fails_is_moved_or_rebooted" {
  command = apply # arns of actions are known only then; the provider is mocked

  assert {
    condition     = contains(aws_cloudwatch_metric_alarm.head["hardware"].alarm_actions, "arn:aws:automate:us-east-1:ec2:recover")
    error_message = "nobody recovers the head"
  }

  assert {
    condition     = contains(aws_cloudwatch_metric_alarm.head["system"].alarm_actions, "arn:aws:automate:us-east-1:ec2:reboot")
    error_message = "nobody reboots the head"
  }
}

run "silence_is_an_alarm_where_it_means_that_nobody_serves" {
  command = plan

  assert {
    condition     = aws_cloudwatch_metric_alarm.load_balancer["nobody-ready"].treat_missing_data == "breaching"
    error_message = "no data about ready machines must alarm"
  }

  assert {
    condition     = alltrue([for alarm in values(aws_cloudwatch_metric_alarm.load_balancer) : alarm.dimensions["TargetGroup"] == "targetgroup/x/1"])
    error_message = "an alarm looks at another load balancer"
  }

  assert {
    condition     = length(aws_cloudwatch_metric_alarm.missing_machines) == 1
    error_message = "no alarm for a worker group"
  }
}

run "without_load_balancer_there_are_no_alarms_about_it" {
  command = plan

  variables {
    load_balancer = null
  }

  assert {
    condition     = length(aws_cloudwatch_metric_alarm.load_balancer) == 0 && length(jsondecode(aws_cloudwatch_dashboard.this.dashboard_body).widgets) == 2
    error_message = "alarms or plots of a load balancer that is not there"
  }
}

run "money_is_watched" {
  command = plan

  variables {
    monthly_budget_usd = 5000
  }

  assert {
    condition     = one([for filter in aws_budgets_budget.monthly[0].cost_filter : filter.values[0]]) == "user:eagleray:cluster$demo"
    error_message = "the budget does not look at this cluster's tag"
  }

  assert {
    condition     = length(aws_budgets_budget.monthly[0].notification) == 2
    error_message = "a warning of what is to come, and one of what was spent"
  }
}

# --- Refused

run "address_without_at" {
  command = plan

  variables {
    alert_emails = ["ops"]
  }

  expect_failures = [var.alert_emails]
}

run "budget_of_nothing" {
  command = plan

  variables {
    monthly_budget_usd = 0
  }

  expect_failures = [var.monthly_budget_usd]
}

run "budget_that_warns_nobody" {
  command = plan

  variables {
    monthly_budget_usd = 100
    alert_emails       = []
  }

  expect_failures = [var.monthly_budget_usd]
}
