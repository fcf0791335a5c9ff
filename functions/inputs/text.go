package inputs

import (
	"bufio"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
)

// dice are the same for the same seed, on every machine.
func dice(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

func pick(r *rand.Rand, from []string) string { return from[r.IntN(len(from))] }

var (
	goodWords  = strings.Fields("great excellent lovely fresh delicious perfect wonderful tasty happy recommend best sweet")
	badWords   = strings.Fields("awful terrible stale broken bitter disappointing worst waste sad refund bland sour")
	plainWords = strings.Fields(`the a this that it was is of and with for my our very honey jar tea coffee biscuit box
		shop order day week friend morning bought tasted arrived opened shared again before`)
	plants = strings.Fields("clover lime heather acacia rape chestnut thyme lavender sunflower dandelion")
)

// word is a made-up one, so that vocabularies are as long as real ones.
func word(r *rand.Rand) string {
	var b strings.Builder
	for range 2 + r.IntN(3) {
		b.WriteByte("bdfgklmnprstvz"[r.IntN(14)])
		b.WriteByte("aeiou"[r.IntN(5)])
	}
	return b.String()
}

// writeReviews writes a CSV file of reviews of which about half are good ones;
// one in twenty has the wrong mark, as people give them.
func writeReviews(w io.Writer, seed uint64, reviews int) error {
	r := dice(seed)
	names := make([]string, 8000)
	for i := range names {
		names[i] = word(r)
	}
	out := csv.NewWriter(w)
	if err := out.Write([]string{"good", "review"}); err != nil {
		return err
	}
	for range reviews {
		good := r.IntN(2)
		opinion := [][]string{badWords, goodWords}[good]
		text := make([]string, 10+r.IntN(50))
		for i := range text {
			switch p := r.IntN(100); {
			case p < 8:
				text[i] = pick(r, opinion)
			case p < 10:
				text[i] = pick(r, [][]string{goodWords, badWords}[good])
			case p < 40:
				text[i] = names[min(r.IntN(len(names)), r.IntN(len(names)))] // some more often
			default:
				text[i] = pick(r, plainWords)
			}
		}
		if r.IntN(20) == 0 {
			good = 1 - good
		}
		if err := out.Write([]string{fmt.Sprint(good), strings.Join(text, " ")}); err != nil {
			return err
		}
	}
	out.Flush()
	return out.Error()
}

// hive is one entry of a JSON document.
type hive struct {
	Name    string             `json:"name"`
	Bees    int                `json:"bees"`
	Awake   bool               `json:"awake"`
	Place   [2]float64         `json:"place"`
	Plants  []string           `json:"plants"`
	Harvest map[string]float64 `json:"harvest"`
	Notes   []string           `json:"notes"`
}

func writeHives(w io.Writer, seed uint64, hives int) error {
	r := dice(seed)
	list := make([]hive, hives)
	for i := range list {
		h := hive{Name: word(r), Bees: r.IntN(60_000), Awake: r.IntN(3) > 0, Harvest: map[string]float64{},
			Place: [2]float64{float64(r.IntN(180_000))/1000 - 90, float64(r.IntN(360_000))/1000 - 180}}
		for year := 2015; year < 2025; year++ {
			h.Harvest[fmt.Sprint(year)] = float64(r.IntN(40_000)) / 1000
		}
		for range 1 + r.IntN(4) {
			h.Plants = append(h.Plants, pick(r, plants))
		}
		for range 2 + r.IntN(4) {
			h.Notes = append(h.Notes, strings.Join([]string{pick(r, plainWords), word(r), pick(r, plainWords), word(r)}, " "))
		}
		list[i] = h
	}
	out := bufio.NewWriter(w)
	if err := json.NewEncoder(out).Encode(list); err != nil {
		return err
	}
	return out.Flush()
}
