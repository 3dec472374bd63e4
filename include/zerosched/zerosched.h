#pragma once

// All of the public surface but mpi_communicator.h and nccl_communicator.h, which trainers with a Session do not need.
#include <zerosched/adamw.h>
#include <zerosched/adamw_schedulefree.h>
#include <zerosched/adamw_schedulefree_paper.h>
#include <zerosched/adamw_schedulefree_plus.h>
#include <zerosched/checkpoint.h>
#include <zerosched/clip_grad.h>
#include <zerosched/communicator.h>
#include <zerosched/device_identity.h>
#include <zerosched/error.h>
#include <zerosched/exit_codes.h>
#include <zerosched/gpa_adamw.h>
#include <zerosched/grad_scaler.h>
#include <zerosched/optimizers.h>
#include <zerosched/parameter_group.h>
#include <zerosched/radam_schedulefree.h>
#include <zerosched/safetensors.h>
#include <zerosched/session.h>
#include <zerosched/sgd.h>
#include <zerosched/sgd_schedulefree.h>
#include <zerosched/sharded_optimizer.h>
#include <zerosched/sharding_options.h>
#include <zerosched/stop_signal.h>
#include <zerosched/timings.h>
#include <zerosched/trainable.h>
#include <zerosched/update_batch_norm.h>
