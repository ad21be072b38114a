// RUN: sluice-opt %s -split-input-file -verify-diagnostics

// expected-error @+1 {{grid and cluster must be positive, block and shared must not be negative}}
func.func private @f() attributes {sluice.l = #plan.launch_config<grid = 0, block = 0, shared = 0, cluster = 1, overlap = false>}

// -----

// expected-error @+1 {{only blocks of a GPU can wait for each other (cooperative)}}
func.func private @f() attributes {sluice.l = #plan.launch_config<grid = 3, block = 0, shared = 0, cluster = 1, overlap = false, cooperative = true>}

// -----

// expected-error @+1 {{grid (3) must be a multiple of cluster (2)}}
func.func private @f() attributes {sluice.l = #plan.launch_config<grid = 3, block = 0, shared = 0, cluster = 2, overlap = false>}

// -----

func.func @f(%x: tensor<4xf32>) {
  // expected-error @+1 {{names an unknown kernel @kernels::@k}}
  plan.dispatch @kernels::@k(%x) launch <grid = 1, block = 0, shared = 0, cluster = 1, overlap = false> label "k" : (tensor<4xf32>) -> ()
  return
}

// -----

func.func private @k()
func.func @f(%x: tensor<4xf32>) {
  // expected-error @+1 {{names an unknown cache @c}}
  plan.dispatch @k(%x) caches [@c] launch <grid = 1, block = 0, shared = 0, cluster = 1, overlap = false> label "k" : (tensor<4xf32>) -> ()
  return
}

// -----

// expected-error @+1 {{must have a positive size}}
plan.buffer @b input : tensor<1xi32> bytes -4

// -----

// expected-error @+1 {{has 1020 bytes, but its type needs 1024}}
plan.buffer @b input : tensor<1x256xf32> bytes 1020

// -----

// expected-error @+1 {{has 66559 bytes, but its type needs 66560}}
plan.buffer @b weights : !quantized.tensor<256x256xi8, group = 128, layout = lanes> bytes 66559

// -----

// expected-error @+1 {{expected a tensor of a known size}}
plan.buffer @b input : tensor<4611686018427387904x4xf32> bytes 4

// -----

func.func private @k()
plan.buffer @a arena : tensor<1xi32> bytes 4 offset 0 alive 0 to 0
plan.step @s arena 4 {
  plan.launch @k [@a] launch <grid = 1, block = 0, shared = 0, cluster = 1, overlap = false> label "k"
  // expected-error @+1 {{is launch 1 and uses @a, which is alive from 0 to 0}}
  plan.launch @k [@a] launch <grid = 1, block = 0, shared = 0, cluster = 1, overlap = false> label "k"
}

// -----

func.func private @k()
plan.buffer @a arena : tensor<2xi32> bytes 8 offset 0 alive 0 to 0
// expected-error @+1 {{shares bytes with @a while both are alive}}
plan.buffer @b arena : tensor<1xi32> bytes 4 offset 4 alive 0 to 0
plan.step @s arena 8 {
  plan.launch @k [@a, @b] launch <grid = 1, block = 0, shared = 0, cluster = 1, overlap = false> label "k"
}

// -----

// expected-error @+1 {{an arena buffer, and no other, has an offset and a lifetime}}
plan.buffer @b input : tensor<1xi32> bytes 4 offset 0 alive 0 to 1

// -----

// expected-error @+1 {{only an input can be fed by an output}}
plan.buffer @b cache : tensor<1xi32> bytes 4 fed_by @b

// -----

// expected-error @+1 {{is fed by @c, which is no output}}
plan.buffer @b input : tensor<1xi32> bytes 4 fed_by @c
plan.buffer @c input : tensor<1xi32> bytes 4

// -----

// expected-error @+1 {{is fed by @c of type 'tensor<2xi32>' and 8 bytes, expected 'tensor<1xi32>' and 4}}
plan.buffer @b input : tensor<1xi32> bytes 4 fed_by @c
plan.buffer @c output : tensor<2xi32> bytes 8

// -----

// expected-error @+1 {{offset and lifetime are out of order}}
plan.buffer @b arena : tensor<1xi32> bytes 4 offset 0 alive 2 to 1

// -----

// expected-error @+1 {{arena must not be negative}}
plan.step @s arena -1 {
}

// -----

// expected-error @+1 {{holds launches only, found func.func}}
plan.step @s arena 0 {
  func.func private @k()
}

// -----

func.func private @k()
plan.step @s arena 0 {
  // expected-error @+1 {{names an unknown buffer @b}}
  plan.launch @k [@b] launch <grid = 1, block = 0, shared = 0, cluster = 1, overlap = false> label "k"
}

// -----

func.func private @k()
plan.buffer @b arena : tensor<2xi32> bytes 8 offset 60 alive 0 to 0
plan.step @s arena 64 {
  // expected-error @+1 {{uses @b, which ends outside the arena of 64 bytes}}
  plan.launch @k [@b] launch <grid = 1, block = 0, shared = 0, cluster = 1, overlap = false> label "k"
}
