// Package gates decides whether a seed may enter a stage.
//
// The functions are pure: a configuration, a target stage and the readings of
// one seed in, a verdict out. They print check names and messages exactly as
// esper-lite does, non-finite numbers included (lifecycle contract, section 5).
// Whether the edge to the target is legal is not their business: that is asked
// after the gate (section 6.3), and no gate but G1 looks at the current stage.
//
// Two modes exist. The strict one asks for improvement, epochs and gradient
// ratio; the permissive one only for safety. Neither contains the other: strict
// G2 ignores exploding gradients, permissive G2 ignores the improvement
// (section 9, row 15).
package gates
