# Network cards and GPUs of instance types, as `aws ec2 describe-instance-types` gives them.
locals {
  efa_cards = {
    "g6e.12xlarge"     = 1
    "p4d.24xlarge"     = 4
    "p5.48xlarge"      = 32
    "p5en.48xlarge"    = 16
    "p6-b200.48xlarge" = 8
  }

  gpus_of_type = {
    "g6.xlarge"        = 1
    "g6.12xlarge"      = 4
    "g6e.xlarge"       = 1
    "g6e.12xlarge"     = 4
    "p4d.24xlarge"     = 8
    "p5.48xlarge"      = 8
    "p5en.48xlarge"    = 8
    "p6-b200.48xlarge" = 8
  }

  plain_interface  = [{ card = 0, device = 0, type = null }]
  single_interface = [{ card = 0, device = 0, type = "efa" }]

  # The first card has an ordinary interface, which carries the machine's only IP address, and an EFA beside it; every
  # other card has an EFA alone, which takes no address.
  efa_interfaces = { for type, cards in local.efa_cards : type => cards == 1 ? local.single_interface : concat(
    [{ card = 0, device = 0, type = "interface" }, { card = 0, device = 1, type = "efa-only" }],
    [for card in range(1, cards) : { card = card, device = 0, type = "efa-only" }],
  ) }

  interfaces = { for name, g in var.worker_groups : name => g.efa ? local.efa_interfaces[g.instance_types[0]] : local.plain_interface }
}
