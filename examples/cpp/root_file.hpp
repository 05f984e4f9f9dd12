// ROOT files: the branches that a model reads, and a tree of its predictions.
#pragma once

#include <TBranch.h>
#include <TFile.h>
#include <TKey.h>
#include <TLeaf.h>
#include <TObjString.h>
#include <TTree.h>

#include <algorithm>
#include <cstdint>
#include <iostream>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "events.hpp"
#include "xec_manifest.hpp"

/// Returns the names of the objects in a ROOT list, of those of one class if that is given.
inline std::string names(const TCollection& list, const char* kind = nullptr) {
    std::string text;
    for (const TObject* object : list) {
        const auto* key = dynamic_cast<const TKey*>(object);
        if (kind && !(key && std::string(key->GetClassName()) == kind)) continue;
        text += (text.empty() ? "" : ", ") + std::string(object->GetName());
    }
    return text.empty() ? "nothing" : text;
}

/// Reads the inputs of a model, run and event number from a tree.
class RootSource : public Source {
public:
    RootSource(const std::string& path, const xec::Manifest& manifest, const std::string& tree)
        : where_(path + ", tree " + tree), file_(path.c_str(), "READ") {
        if (file_.IsZombie() || file_.TestBit(TFile::kRecovered))
            throw xec::Error(path + " cannot be read as a ROOT file", "a complete ROOT file",
                             "copy it again");
        tree_ = dynamic_cast<TTree*>(file_.Get(tree.c_str()));
        if (!tree_)
            throw xec::Error(path + " has no tree '" + tree + "'",
                             "one of its trees: " + names(*file_.GetListOfKeys(), "TTree"),
                             "choose it with --tree");
        if (!manifest.raw)
            throw xec::Error(
                path + " has photons and times, the model wants normalized values",
                "a model with its normalization inside",
                "export the model with its normalization, or write normalized values as floats");
        for (const xec::Field& field : manifest.inputs) add_input(field, manifest);
        run_ = tree_->GetBranch("run") ? leaf("run", 1) : nullptr;
        event_ = tree_->GetBranch("event") ? leaf("event", 1) : nullptr;
    }

    std::size_t size() const override { return static_cast<std::size_t>(tree_->GetEntries()); }

    Batch read(std::size_t first, std::size_t events) override {
        Batch batch;
        batch.events = events;
        for (const Input& input : inputs_) {
            std::vector<float>& values = batch.inputs[input.name];
            values.reserve(events * input.size);
            for (std::size_t entry = first; entry < first + events; ++entry) {
                if (input.leaf) load(*input.leaf, entry);
                for (std::size_t i = 0; i < input.size; ++i)
                    values.push_back(
                        input.leaf ? static_cast<float>(input.leaf->GetValue(static_cast<Int_t>(i)))
                                   : input.missing);
            }
        }
        for (std::size_t entry = first; entry < first + events; ++entry) {
            if (run_) batch.run.push_back(integer(*run_, entry));
            if (event_) batch.event.push_back(integer(*event_, entry));
        }
        return batch;
    }

private:
    struct Input {
        std::string name;
        std::size_t size;
        TLeaf* leaf;    // null where the file lacks the branch
        float missing;  // the value then
    };

    /// What the network learned from has to be there; other inputs may be missing, as for
    /// `python -m xec_jax.predict`: masks then choose no sensor, numbers are unknown.
    void add_input(const xec::Field& field, const xec::Manifest& manifest) {
        const auto named = manifest.branches.find(field.name);
        const bool is_needed = named != manifest.branches.end();
        const std::string branch = is_needed ? named->second : field.name;
        const bool is_mask = field.name.find("_mask") != field.name.npos;
        const float missing = is_mask ? 0.0f : std::numeric_limits<float>::quiet_NaN();
        if (!is_needed && !tree_->GetBranch(branch.c_str())) {
            std::cerr << "WARNING: " << where_ << " has no branch " << branch << ": taken as "
                      << missing << "\n";
            inputs_.push_back({field.name, field.size(), nullptr, missing});
        } else {
            inputs_.push_back({field.name, field.size(), leaf(branch, field.size()), missing});
        }
    }

    TLeaf* leaf(const std::string& name, std::size_t size) const {
        TBranch* branch = tree_->GetBranch(name.c_str());
        if (!branch)
            throw xec::Error(
                where_ + " has no branch '" + name +
                    "' (it has: " + names(*tree_->GetListOfBranches()) + ")",
                "a branch '" + name + "' with " + std::to_string(size) + " numbers per event",
                "give a file that has it, or a model that was trained with other branches");
        auto* leaf = dynamic_cast<TLeaf*>(branch->GetListOfLeaves()->First());
        const std::vector<std::string> simple = {"TLeafF", "TLeafD", "TLeafI", "TLeafL",
                                                 "TLeafS", "TLeafB", "TLeafO"};
        const bool is_simple =
            leaf && branch->GetNleaves() == 1 && !leaf->GetLeafCount() &&
            std::count(simple.begin(), simple.end(), std::string(leaf->ClassName()));
        const std::size_t found = leaf ? static_cast<std::size_t>(leaf->GetLenStatic()) : 0;
        if (!is_simple || found != size)
            throw xec::Error(where_ + ", branch " + name + " has " +
                                 (is_simple ? std::to_string(found) + " numbers per event"
                                            : "no fixed count of numbers per event"),
                             std::to_string(size), "see what wrote this file");
        return leaf;
    }

    void load(TLeaf& leaf, std::size_t entry) const {
        if (leaf.GetBranch()->GetEntry(static_cast<Long64_t>(entry)) <= 0)
            throw xec::Error(where_ + ", branch " + leaf.GetName() + ": entry " +
                                 std::to_string(entry) + " cannot be read",
                             "a complete ROOT file", "copy the file again");
    }

    std::int64_t integer(TLeaf& leaf, std::size_t entry) const {
        load(leaf, entry);
        return leaf.GetValueLong64(0);
    }

    std::string where_;
    TFile file_;
    TTree* tree_ = nullptr;  // of file_
    std::vector<Input> inputs_;
    TLeaf *run_ = nullptr, *event_ = nullptr;  // null where the file lacks them
};

/// Writes run, event and predictions into a tree `tree`, and the manifest as `metadata`.
class RootSink : public Sink {
public:
    RootSink(const std::string& path, const std::vector<xec::Field>& outputs,
             const std::string& metadata)
        : new_(path), file_(new_.temporary().c_str(), "RECREATE"), outputs_(outputs) {
        if (file_.IsZombie()) new_.fail("ROOT cannot open " + new_.temporary().string());
        tree_ = new TTree("tree", "predictions");  // file_ owns it
        TObjString(metadata.c_str()).Write("metadata");
        for (const xec::Field& field : outputs) {
            std::string leaves = field.name;
            for (const std::int64_t n : field.shape) leaves += "[" + std::to_string(n) + "]";
            row_[field.name].resize(field.size());
            tree_->Branch(field.name.c_str(), row_[field.name].data(), (leaves + "/F").c_str());
        }
    }

    void write(const Batch& batch, const xec::Values& predictions) override {
        if (!batch.run.empty() && !tree_->GetBranch("run")) tree_->Branch("run", &run_, "run/L");
        if (!batch.event.empty() && !tree_->GetBranch("event"))
            tree_->Branch("event", &event_, "event/L");
        for (std::size_t i = 0; i < batch.events; ++i) {
            if (!batch.run.empty()) run_ = batch.run[i];
            if (!batch.event.empty()) event_ = batch.event[i];
            for (const xec::Field& field : outputs_) {
                std::vector<float>& row = row_[field.name];
                std::copy_n(predictions.at(field.name).begin() +
                                static_cast<std::ptrdiff_t>(i * row.size()),
                            row.size(), row.begin());
            }
            if (tree_->Fill() < 0) new_.fail("ROOT wrote only a part");
        }
    }

    void finish() override {
        file_.Write();
        file_.Close();
        if (file_.TestBit(TFile::kWriteError)) new_.fail("ROOT wrote only a part");
        new_.rename();
    }

private:
    NewFile new_;
    TFile file_;
    std::vector<xec::Field> outputs_;
    TTree* tree_ = nullptr;
    std::map<std::string, std::vector<float>> row_;  // what tree_ reads
    Long64_t run_ = 0, event_ = 0;
};
