# The study of docs/search.md: what the searches find on 70,000 real images, within 90 minutes a seed.
.PHONY: study study-why study-table fashion-mnist

FASHION := build/fashion-mnist
SEEDS ?= 0 1 2
# torchvision's wheels are made for a Torch with CUDA; see there.
STUDY := PYTHONPATH="$(CURDIR)/tests/site" $(PY)

study: build fashion-mnist
	@for seed in $(SEEDS); do $(STUDY) bench/search/study.py --seed $$seed || exit 1; done
	@echo "make study-table puts what was found into docs/search.md"

# As published, with less time, less size and more images, on the supernet of the first seed; half an hour each.
study-why: study
	@for setting in fashion-rises fashion-fast fashion-small fashion-images; do \
	    $(STUDY) bench/search/study.py --setting $$setting --seed $(firstword $(SEEDS)) || exit 1; done

study-table: $(STAMPS)/test
	@$(STUDY) bench/search/table.py $(wildcard build/study/fashion*/seed-?.json)

fashion-mnist: $(FASHION).done

# As torchvision reads it.
$(FASHION).done: scripts/debian.py
	@$(PYTHON) $< $(FASHION) dataset-fashion-mnist
	@mkdir -p $(FASHION)/FashionMNIST/raw
	@for file in $(FASHION)/usr/share/datasets/fashion-mnist/*.gz; do \
	    gzip --decompress --stdout $$file > $(FASHION)/FashionMNIST/raw/$$(basename $$file .gz) || exit 1; done
	@touch $@
