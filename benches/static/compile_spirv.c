/* Hands one SPIR-V compute shader to the Vulkan driver that is there, and says whether it compiled.
 *
 * usage: compile_spirv FILE.spv [UNIFORM]      build: cc compile_spirv.c -o compile_spirv -lvulkan
 *
 * UNIFORM is the binding of set 0 that is a uniform buffer. Every other binding, 0 to 15 of sets 0 and 1, is a storage buffer.
 * With the null device of Mesa's RADV no GPU is needed: see shader_stats.py. */
#include <stdio.h>
#include <stdlib.h>
#include <vulkan/vulkan.h>

#define OK(call) do { VkResult result_ = (call); if (result_) { fprintf(stderr, "%s: %d\n", #call, result_); return 1; } } while (0)
#define BINDINGS 16

static uint32_t *read_words(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  if (!file) { perror(path); return NULL; }
  fseek(file, 0, SEEK_END);
  *size = (size_t)ftell(file);
  rewind(file);
  uint32_t *words = malloc(*size);
  if (words && fread(words, 1, *size, file) != *size) { free(words); words = NULL; }
  fclose(file);
  return words;
}

int main(int argc, char **argv) {
  if (argc < 2) { fprintf(stderr, "usage: compile_spirv FILE.spv [UNIFORM]\n"); return 2; }
  const int uniform = argc > 2 ? atoi(argv[2]) : -1;
  size_t size;
  uint32_t *code = read_words(argv[1], &size);
  if (!code) return 1;

  VkApplicationInfo app = {VK_STRUCTURE_TYPE_APPLICATION_INFO, .pApplicationName = "compile_spirv", .apiVersion = VK_API_VERSION_1_3};
  VkInstanceCreateInfo instance_info = {VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO, .pApplicationInfo = &app};
  VkInstance instance;
  OK(vkCreateInstance(&instance_info, NULL, &instance));
  uint32_t count = 1;
  VkPhysicalDevice gpu;
  VkResult found = vkEnumeratePhysicalDevices(instance, &count, &gpu);
  if ((found != VK_SUCCESS && found != VK_INCOMPLETE) || !count) { fprintf(stderr, "no Vulkan device\n"); return 1; }

  /* Every feature that the driver knows: what a shader may use is not the question here. */
  VkPhysicalDeviceVulkan13Features f13 = {VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_FEATURES};
  VkPhysicalDeviceVulkan12Features f12 = {VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES, &f13};
  VkPhysicalDeviceVulkan11Features f11 = {VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_FEATURES, &f12};
  VkPhysicalDeviceFeatures2 features = {VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2, &f11};
  vkGetPhysicalDeviceFeatures2(gpu, &features);
  float priority = 1;
  VkDeviceQueueCreateInfo queue = {VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO, .queueCount = 1, .pQueuePriorities = &priority};
  VkDeviceCreateInfo device_info = {VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO, &features, .queueCreateInfoCount = 1, .pQueueCreateInfos = &queue};
  VkDevice device;
  OK(vkCreateDevice(gpu, &device_info, NULL, &device));

  VkShaderModuleCreateInfo module_info = {VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO, .codeSize = size, .pCode = code};
  VkShaderModule module;
  OK(vkCreateShaderModule(device, &module_info, NULL, &module));

  VkDescriptorSetLayout sets[2];
  for (int set = 0; set < 2; set++) {
    VkDescriptorSetLayoutBinding bindings[BINDINGS];
    for (int i = 0; i < BINDINGS; i++)
      bindings[i] = (VkDescriptorSetLayoutBinding){
          i, set == 0 && i == uniform ? VK_DESCRIPTOR_TYPE_UNIFORM_BUFFER : VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
          1, VK_SHADER_STAGE_COMPUTE_BIT, NULL};
    VkDescriptorSetLayoutCreateInfo set_info = {VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO, .bindingCount = BINDINGS, .pBindings = bindings};
    OK(vkCreateDescriptorSetLayout(device, &set_info, NULL, &sets[set]));
  }
  VkPipelineLayoutCreateInfo layout_info = {VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO, .setLayoutCount = 2, .pSetLayouts = sets};
  VkPipelineLayout layout;
  OK(vkCreatePipelineLayout(device, &layout_info, NULL, &layout));

  VkPipelineShaderStageCreateInfo stage = {VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO, .stage = VK_SHADER_STAGE_COMPUTE_BIT, .module = module, .pName = "main"};
  VkComputePipelineCreateInfo pipeline_info = {VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO, .stage = stage, .layout = layout};
  VkPipeline pipeline;
  OK(vkCreateComputePipelines(device, VK_NULL_HANDLE, 1, &pipeline_info, NULL, &pipeline));
  return 0;
}
