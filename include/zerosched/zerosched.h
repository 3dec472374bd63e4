#pragma once

// All of the public surface but mpi_communicator.h, which includes its vendor's header.
#include <zerosched/adamw_schedulefree.h>
#include <zerosched/communicator.h>
#include <zerosched/parameter_group.h>
#include <zerosched/session.h>
#include <zerosched/sharded_optimizer.h>
#include <zerosched/sharding_options.h>
