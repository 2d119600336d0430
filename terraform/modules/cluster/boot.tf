# What each machine is told. The keys of `node` are those of cluster/node/config.py: NodeConfig, which refuses unknown ones.
locals {
  node = {
    cluster          = var.name
    region           = data.aws_region.current.id
    head_address     = local.head_address
    token_secret_arn = var.token_secret_arn
    weights_bucket   = local.weights_bucket
    weights_cache    = "/var/lib/eagleray/weights"
  }

  head_node = merge(local.node, {
    role              = "head"
    group             = var.head.gpus > 0 ? "head" : null
    num_gpus          = var.head.gpus
    resources         = {}
    labels            = {}
    serve_config      = local.serve_config_address
    gcs               = local.gcs_store
    efa               = false
    launch_hook       = null
    autoscaling_group = null
    worker_groups = [for name, g in var.worker_groups : {
      name              = name
      autoscaling_group = local.group_names[name]
      nodes_per_replica = g.nodes_per_replica
      gpus_per_node     = g.gpus_per_node
      min_size          = g.min_size
      max_size          = g.max_size
    }]
    interruption_queue_url = aws_sqs_queue.interruptions.url
  })

  worker_nodes = { for name, g in var.worker_groups : name => merge(local.node, {
    role                   = "worker"
    group                  = name
    num_gpus               = g.gpus_per_node
    resources              = g.resources
    labels                 = g.labels
    serve_config           = null
    gcs                    = null
    efa                    = g.efa
    launch_hook            = local.launch_hook
    autoscaling_group      = local.group_names[name]
    worker_groups          = []
    interruption_queue_url = null
  }) }

  boot = {
    python         = coalesce(var.package.python, "/opt/eagleray/bin/python")
    wheel_uri      = var.package.wheel == null ? "" : "s3://${local.weights_bucket}/${aws_s3_object.wheel[0].key}"
    pip_args       = join(" ", var.package.pip_args)
    models         = join(" ", var.package.models)
    agent_settings = aws_ssm_parameter.log_agent.name
  }

  head_boot    = templatefile("${path.module}/templates/boot.sh.tftpl", merge(local.boot, { node_json = jsonencode(local.head_node) }))
  worker_boots = { for name, node in local.worker_nodes : name => templatefile("${path.module}/templates/boot.sh.tftpl", merge(local.boot, { node_json = jsonencode(node) })) }
}
