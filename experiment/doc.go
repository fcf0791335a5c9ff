// Package experiment re-creates the figures of the ASPLOS'21 paper on the
// machine that it runs on. Each experiment is a file: which points are to be
// measured and in which order, how one is measured, and what figure and table
// are made of the samples. Measuring writes raw samples (JSON lines, one a
// sample) and nothing else; figures are made of them by a separate step, in
// package report, as often as one likes. cmd/skep gives it a private daemon.
//
// # A directory of results
//
//	samples.jsonl   raw data, as below; the only file that measuring needs
//	samples.db      the same in SQLite, made anew from samples.jsonl
//	report.html     figures and tables, self-contained
//	report.json     the same, for the control API and its page (package results)
//	figures/*       the figures, as PNG, and as SVG in two widths for that page
//	tables/*.csv    the tables
//
// samples.jsonl has two kinds of lines. A session line, {"session": …}, says on
// which machine, with which versions and settings the samples after it were
// taken; there is one for each time that measuring was begun or resumed. A
// sample line is a Sample. The samples of one point are written at once, and say
// how many they are ("of"): a point that is not complete is measured again.
package experiment
