// RUN: sluice-opt %s -split-input-file -verify-diagnostics

// expected-error @+1 {{grid and cluster must be positive, block and shared must not be negative}}
func.func private @f() attributes {sluice.l = #plan.launch_config<grid = 0, block = 0, shared = 0, cluster = 1, overlap = false>}

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

// expected-error @+1 {{an arena buffer, and no other, has an offset and a lifetime}}
plan.buffer @b input : tensor<1xi32> bytes 4 offset 0 alive 0 to 1

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
