// Package test runs skep end to end as a user would: the real binaries, real
// microVMs, a daemon that is killed and started again. What it needs and the
// host lacks is skipped with the cure; SKEP_REQUIRE turns that into a failure.
package test
