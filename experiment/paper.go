package experiment

// published is the paper's row for a function; times in milliseconds, sizes in
// MB. Zero where the paper has no number.
type published struct {
	warm, vanilla, reap float64
	contiguity          float64 // Fig 3, pages
	booted, restored    float64 // Fig 4
	same, unique        float64 // Fig 5, pages
}

// paperRows are the numbers of Ustiugov et al., ASPLOS 2021: two Xeon E5-2680 v3,
// SATA SSD, Firecracker with KVM.
var paperRows = map[string]published{
	"helloworld":       {1, 232, 60, 1.9, 148, 8, 1965, 2},
	"chameleon":        {29, 437, 97, 2.3, 152, 13, 3276, 6},
	"pyaes":            {3, 309, 55, 1.9, 149, 8, 2081, 7},
	"image_rotate":     {37, 594, 207, 3.4, 174, 24, 6132, 1311},
	"json_serdes":      {27, 535, 127, 3.2, 164, 22, 4357, 1102},
	"lr_serving":       {2, 647, 66, 1.6, 256, 10, 2673, 15},
	"cnn_serving":      {192, 1424, 237, 2.4, 256, 28, 7117, 59},
	"rnn_serving":      {25, 503, 82, 1.9, 187, 11, 2698, 5},
	"lr_training":      {4991, 8057, 6090, 4.9, 256, 99, 23841, 725},
	"video_processing": {1476, 2642, 2540, 2.8, 246, 32, 8038, 2527},
}

// inPaper is the row of a function. The one that is like the paper's helloworld
// stands for it.
func inPaper(function string) published {
	if function == "hello-python" {
		function = "helloworld"
	}
	return paperRows[function]
}

// Of the paper's other figures, helloworld.
var (
	paperSteps = map[string]float64{"mmap": 232, "parallel": 118, "wsfile": 71, "reap": 60} // Fig 7, ms
	paperMBps  = map[string]float64{"mmap": 43, "parallel": 130, "wsfile": 275, "reap": 533}
	// Fig 9, mean milliseconds of an instance by the number of instances.
	paperAtOnce = map[string]map[int]float64{
		"mmap": {1: 232, 2: 405, 4: 442, 8: 745, 16: 1256, 32: 2787, 64: 6435},
		"reap": {1: 60, 2: 96, 4: 149, 8: 185, 16: 522, 32: 730, 64: 1063},
	}
)
