package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/skep-dev/skep/api"
)

// progress shows the stages of a deployment: a bar or a spinner each on a
// terminal, nothing elsewhere.
type progress struct {
	mu   sync.Mutex // guards what follows
	p    *mpb.Progress
	bars map[api.DeployStage]*mpb.Bar
	last api.DeployStage
	note map[api.DeployStage]string
}

func (c *cli) newProgress() *progress {
	p := &progress{bars: map[api.DeployStage]*mpb.Bar{}, note: map[api.DeployStage]string{}}
	if terminal(c.err) && !c.json {
		p.p = newBars(c.err)
	}
	return p
}

func newBars(w io.Writer) *mpb.Progress {
	return mpb.New(mpb.WithOutput(w), mpb.WithWidth(40), mpb.WithRefreshRate(100*time.Millisecond))
}

// event is told of every step.
func (p *progress) event(e api.DeployEvent) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.p == nil || e.Stage == api.StageDone || e.Stage == api.StageFailed {
		return
	}
	bar := p.bars[e.Stage]
	if bar == nil && counted(e.Stage) && e.Total == 0 {
		return // what is in the cache already needs no bar
	}
	if bar == nil {
		p.finish(p.last)
		bar = p.add(e)
	}
	p.last = e.Stage
	if e.Total > 0 {
		bar.SetTotal(e.Total, false)
		bar.SetCurrent(e.Done)
	}
	if e.Took > 0 {
		p.note[e.Stage] = fmt.Sprintf("%.1f s", e.Took.Seconds())
		p.finish(e.Stage)
	}
}

// add makes the bar of a stage; p.mu is held.
func (p *progress) add(e api.DeployEvent) *mpb.Bar {
	stage := e.Stage
	name := decor.Name(string(stage), decor.WC{W: 14, C: decor.DindentRight})
	took := decor.Any(func(decor.Statistics) string {
		p.mu.Lock()
		defer p.mu.Unlock()
		return " " + p.note[stage]
	})
	if counted(stage) {
		p.bars[stage] = p.p.AddBar(0, mpb.PrependDecorators(name),
			mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f"), took))
	} else {
		p.bars[stage] = p.p.New(0, mpb.SpinnerStyle(), mpb.PrependDecorators(name), mpb.AppendDecorators(took), mpb.BarWidth(1), mpb.BarFillerOnComplete("✓"))
	}
	return p.bars[stage]
}

// counted tells whether a stage's events count bytes.
func counted(s api.DeployStage) bool { return s == api.StagePulling || s == api.StageBuilding }

// finish completes a stage's bar; p.mu is held.
func (p *progress) finish(stage api.DeployStage) {
	if bar := p.bars[stage]; bar != nil && !bar.Completed() {
		bar.SetTotal(-1, true)
	}
}

// close ends the bars. It is idempotent.
func (p *progress) close() {
	p.mu.Lock()
	bars := p.p
	p.p = nil
	for _, bar := range p.bars {
		if !bar.Completed() {
			bar.Abort(false)
		}
	}
	p.mu.Unlock()
	if bars != nil {
		bars.Wait()
	}
}
