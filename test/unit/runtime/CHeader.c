// Part of Sluice, under the Apache License v2.0 with LLVM Exceptions. See LICENSE.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

/* The C API from C: the example of sluice.h, with its text collected. */

#include "sluice-runtime/sluice.h"

#include <stdio.h>
#include <string.h>

static char collected[256];

static int printText(const char *text, size_t bytes, void *user) {
  (void)user;
  if (strlen(collected) + bytes < sizeof(collected))
    strncat(collected, text, bytes);
  return 0;
}

const char *runExample(const char *directory) {
  sluice_artifact *artifact;
  sluice_session *session;
  sluice_generate_options options;
  if (sluice_artifact_open(directory, &artifact))
    return sluice_last_error();
  if (sluice_session_create(artifact, NULL, &session)) {
    sluice_artifact_free(artifact);
    return sluice_last_error();
  }
  sluice_generate_options_init(&options);
  options.temperature = 0;
  options.max_tokens = 4;
  if (sluice_generate_text(session, "a", &options, printText, NULL, NULL))
    strcpy(collected, "failed");
  sluice_session_free(session);
  sluice_artifact_free(artifact);
  return collected;
}
