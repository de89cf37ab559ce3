"""The stages of the doctor: the data, a few pairs learnt by heart, held-out pairs against shuffled ones."""
