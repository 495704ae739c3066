// A plugin of QEMU's user-mode emulation (7.2 and later) that counts how often every translated block of
// instructions is executed between two marks.
//
// The emulated program makes a mark by getpriority(MARK, 1), which the kernel refuses and which changes
// nothing, and ends with getpriority(MARK, 2). What was executed in between is written to the file of the
// argument "out", a line for each block: executions, address, and its instructions, all in hexadecimal. One
// thread is counted exactly; counters of several would race.
//
// QEMU's header is in no Debian package of this version: what is used of it is declared here.
#define _POSIX_C_SOURCE 200809L
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t PluginId;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_info_t;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
typedef void (*OnTranslation)(PluginId, struct qemu_plugin_tb*);
typedef void (*OnSystemCall)(PluginId, unsigned cpu, int64_t number, uint64_t, uint64_t, uint64_t, uint64_t,
                             uint64_t, uint64_t, uint64_t, uint64_t);
void qemu_plugin_register_vcpu_tb_trans_cb(PluginId, OnTranslation);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb*, enum qemu_plugin_op, void*, uint64_t);
void qemu_plugin_register_vcpu_syscall_cb(PluginId, OnSystemCall);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb*);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb*);
struct qemu_plugin_insn* qemu_plugin_tb_get_insn(const struct qemu_plugin_tb*, size_t);
const void* qemu_plugin_insn_data(const struct qemu_plugin_insn*);

#define PUBLIC __attribute__((visibility("default")))

PUBLIC int qemu_plugin_version = 1;

enum { kGetPriority = 141, kMark = 0x6d61726b, kBegin = 1, kEnd = 2 };  // of 64-bit Arm; "mark"

struct Block {
  struct Block* before;
  uint64_t executions;
  uint64_t at_begin;
  uint64_t address;
  size_t size;
  uint32_t words[];
};

static struct Block* last;
static const char* path;

static void refuse(const char* why) {
  fprintf(stderr, "executed_blocks: %s\n", why);
  exit(2);
}

static void translated(PluginId id, struct qemu_plugin_tb* tb) {
  (void)id;
  const size_t size = qemu_plugin_tb_n_insns(tb);
  struct Block* block = calloc(1, sizeof *block + size * sizeof *block->words);
  if (!block) refuse("no memory for another block");
  block->before = last;
  block->address = qemu_plugin_tb_vaddr(tb);
  block->size = size;
  for (size_t i = 0; i < size; ++i) {
    memcpy(&block->words[i], qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, i)), sizeof *block->words);
  }
  last = block;
  qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &block->executions, 1);
}

static void write_blocks(void) {
  FILE* file = fopen(path, "w");
  if (!file) refuse("cannot write the file of the argument out");
  for (const struct Block* block = last; block; block = block->before) {
    if (block->executions == block->at_begin) continue;
    fprintf(file, "%" PRIx64 " %" PRIx64, block->executions - block->at_begin, block->address);
    for (size_t i = 0; i < block->size; ++i) fprintf(file, " %08" PRIx32, block->words[i]);
    fputc('\n', file);
  }
  if (fclose(file)) refuse("cannot write the file of the argument out");
}

static void called(PluginId id, unsigned cpu, int64_t number, uint64_t which, uint64_t who, uint64_t c,
                   uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
  (void)id, (void)cpu, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
  if (number != kGetPriority || which != kMark) return;
  if (who == kEnd) return write_blocks();
  for (struct Block* block = last; block; block = block->before) block->at_begin = block->executions;
}

PUBLIC int qemu_plugin_install(PluginId id, const struct qemu_info_t* info, int count, char** arguments) {
  (void)info;
  for (int i = 0; i < count; ++i) {
    if (!strncmp(arguments[i], "out=", 4)) path = strdup(arguments[i] + 4);
  }
  if (!path) refuse("usage: -plugin executed_blocks.so,out=FILE");
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_vcpu_syscall_cb(id, called);
  return 0;
}
